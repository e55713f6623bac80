"""What several strategies share: checks of arguments, and questions about a history."""
