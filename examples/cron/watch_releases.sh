#!/bin/sh
# watch_releases.sh PYTHON URL: is there a new release?
#
# Exit codes: 0 looked; 75 (EX_TEMPFAIL) come again later; 1 it makes no sense to come again.

# As `curl -s -o /dev/null -w '%{http_code}' "$1"` does it, where there is a curl.
http_status() {
    "$python" -c '
import http.client, sys, urllib.parse
url = urllib.parse.urlsplit(sys.argv[1])
try:
    connection = http.client.HTTPConnection(url.netloc, timeout=2)
    connection.request("GET", url.path)
    print(connection.getresponse().status)
except OSError:
    print("000")
' "$1"
}

python=$1
status=$(http_status "$2")
case $status in
    200) exit 0 ;;
    000 | 429 | 5??) echo "GitHub is not well: $status" >&2; exit 75 ;;
    *) echo "GitHub refuses: $status" >&2; exit 1 ;;
esac
