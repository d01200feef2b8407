"""The socketmap front end of rcptd: recipients asked about as keys of a map."""
