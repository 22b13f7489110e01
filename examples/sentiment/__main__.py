"""`python -m examples.sentiment`, from the repository's root."""

from examples.sentiment.demo import main

if __name__ == "__main__":
    main()
