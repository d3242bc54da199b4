"""What tests share: oracles with closed forms, tiny models, recorded cases."""
