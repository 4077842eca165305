"""`python -m onepiece_comp` is `onepiece-comp`."""

from onepiece_comp.cli import main

if __name__ == "__main__":
    main()
