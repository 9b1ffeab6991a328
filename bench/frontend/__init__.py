"""What the native frontend costs beside the frontend that it replaces, and what it saves."""
