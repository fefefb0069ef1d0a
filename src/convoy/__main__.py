"""`python -m convoy`, which is how torchrun starts it."""

from convoy.cli import main

if __name__ == "__main__":
    main()
