"""The attention kernel in Metal, and the plan that its template arguments are."""
