"""The time to a new task: seconds until it predicts, and how accurate it is then."""
