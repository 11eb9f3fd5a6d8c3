# The keeper of one server: makes its folder, and when whoever started it is gone, in whatever way,
# stops the server and removes the folder.
#
# sh -c "$script" keeper <folder template> <stop signal> <seconds of grace>
#
# Answers on standard output with the folder (or with what went wrong), then listens on standard input:
#   watch PID        this process is the server
#   gone             the server was waited for; its id may belong to a stranger from now on
#   finally COMMAND  run this at the end as well
# End of file is the end: the operating system closes the pipe even after kill -9.

# PIPE: whoever started it may be gone before it answers, and the folder is there by then.
trap '' INT TERM HUP QUIT TSTP PIPE
folder=$(mktemp -d "$1" 2>&1) || { echo "$folder"; exit 1; }
stop=$2
tenths=$(($3 * 10))
pid=
finally=
echo "$folder"
# The server may live in a folder that only its user can enter; and nobody's pipe may be held open from here.
cd /
exec >/dev/null 2>&1

while read -r word rest; do
    case $word in
        watch) pid=$rest ;;
        gone) pid= ;;
        finally) finally=$rest ;;
    esac
done

alive() {
    kill -0 "$1" || return 1
    # A dead process nobody has waited for still answers kill -0: in containers process 1 may never wait.
    if [ -r "/proc/$1/stat" ]; then
        read -r stat <"/proc/$1/stat"
        case $stat in *") Z "*) return 1 ;; esac
    fi
}

if [ -n "$pid" ]; then
    kill -s "$stop" "$pid"
    kill -s CONT -- "-$pid"
    while [ "$tenths" -gt 0 ] && alive "$pid"; do
        sleep 0.1
        tenths=$((tenths - 1))
    done
    kill -s KILL -- "-$pid"
fi
[ -z "$finally" ] || eval "$finally"
# Helpers of a killed server may write for another moment, so once is not always enough.
tries=100
while rm -rf -- "$folder"; [ -e "$folder" ] && [ "$tries" -gt 0 ]; do
    sleep 0.1
    tries=$((tries - 1))
done
