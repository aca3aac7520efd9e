"""`python -m memcluster`: the command, without the working directory that -m puts first on Python's path. A user's own
`json.py` there is not ours to run."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]
    from memcluster.launcher.start import main

    main()
