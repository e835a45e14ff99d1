"""Human comparisons: a store that loses nothing, a session that decides what is shown, a view with buttons, figures
about agreement, and the export to preferences. Only the view needs ipywidgets, only figures and export need numpy."""
