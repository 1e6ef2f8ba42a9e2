"`python -m audiolab` is `audiolab`, where the program is not on the path; several processes are started this way."
import sys

from .apps import main

sys.exit(main())
