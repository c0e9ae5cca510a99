"""The checks, each a function from records to findings; `text` looks at one row at a time, the others compare rows."""
