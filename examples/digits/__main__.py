"""`python -m examples.digits`, from the repository's root."""

from examples.digits.demo import main

if __name__ == "__main__":
    main()
