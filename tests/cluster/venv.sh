#!/bin/bash
# Usage: venv.sh PYTHON - a fresh ~/venv that borrows the packages of PYTHON's environment.
# Stands for `python3 -m venv ~/venv` and a download of every dependency, on machines without a net.
set -euo pipefail
python=$1
"$python" -m venv --without-pip ~/venv
"$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
    > "$(~/venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
printf '#!/bin/sh\nexec ~/venv/bin/python -m pip "$@"\n' > ~/venv/bin/pip
printf '#!/bin/sh\nexec ~/venv/bin/python -m ray.scripts.scripts "$@"\n' > ~/venv/bin/ray
chmod +x ~/venv/bin/pip ~/venv/bin/ray
