-- Addresses are compared without regard to capitals. Where two accounts differ in capitals only, the second stays as it is.
UPDATE OR IGNORE accounts SET email = lower(email);
