"""Judge a network without a teacher: certificate, structure of residuals, standard errors."""
