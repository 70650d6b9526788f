"""What a user's type checker makes of the package."""
