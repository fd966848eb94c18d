"""Messages between client, server and the processes of a node, and the codec for what is pickled inside them.

`PROTOCOL` is the version of the messages that this release speaks; both sides carry it in every request.
"""

PROTOCOL = 1
