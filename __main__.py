"""The command line as python -m gpt2_np."""
from .command_line import main

raise SystemExit(main())
