#!/bin/sh
# PID 1 of the virtual machine: unpacks project.tar, then becomes its guest.py.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mkdir /srv/job && tar --extract --file=/dev/vdc --directory=/srv/job
exec python3 /srv/job/project/tests/vm/guest.py boot
