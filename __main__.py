"""The command line as python -m gpt2_np, where it is installed."""
if __package__:
    from .gpt2_np import main
else:
    from gpt2_np import main

raise SystemExit(main())
