"""`python -m appliance` is the console script `appliance`."""

from appliance.launcher import main

if __name__ == "__main__":
    raise SystemExit(main())
