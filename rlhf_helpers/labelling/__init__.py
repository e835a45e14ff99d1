"""Human comparisons: a store that loses nothing (`schema`, `records`, `store`, `log`), a session that decides what is shown
(`session`, `history`, `selection`, `strip`), views of it in a notebook (`view` picks one: `widget` with the keyboard, or
`plain_view`; `chat` for several models), figures (`agreement`, `ratings`) and files (`export`, `importing`)."""
