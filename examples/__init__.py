"""Small labelled files, and a demonstration that trains, pushes and asks three tenants' models."""
