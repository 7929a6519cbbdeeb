"""A finished fit for people: report, model card and figures, from the templates beside them."""
