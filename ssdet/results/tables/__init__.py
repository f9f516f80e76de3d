"""Result tables: numbers, formatting, output formats."""
