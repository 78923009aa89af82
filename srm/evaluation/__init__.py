"""How often rewards rank pairs rightly, and whether sentence rewards find what is wrong."""
