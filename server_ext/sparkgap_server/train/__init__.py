"""What happens inside a rank."""
