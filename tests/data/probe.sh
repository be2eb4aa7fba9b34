# What a process finds around itself, one fact a line: a name, a space, what it is. Run by /bin/sh of busybox, as a
# container's command. $1 is words of paths, each of which is described; $2 and what follows stand for arguments.
export PATH=/bin
set -f

# Says a fact, its value in words.
say() {
    name=$1
    shift
    echo "$name $*"
}

paths=$1
shift
say args "$0|$*"
say exe "$(readlink /proc/$$/exe)"
say cwd "$(readlink /proc/$$/cwd)"
tr '\0' '\n' < /proc/$$/environ | sed 's/^\([^=]*\)=/env:\1 /'

while read -r key value; do
    case $key in
    Uid: | Gid: | Groups: | Umask: | Cap*: | NoNewPrivs: | Seccomp: | Seccomp_filters: | SigBlk: | SigIgn:)
        say "status:${key%:}" $value
        ;;
    esac
done < /proc/$$/status

read -r stat < /proc/$$/stat
set -- ${stat##*) }
say process "pid $$ parent $2 group $3 session $4 terminal $5"
say schedule "nice ${17} priority ${38} policy ${39}"
say ionice "$(busybox ionice -p $$)"
say personality "$(cat /proc/$$/personality)"
say oom_score_adj "$(cat /proc/$$/oom_score_adj)"
say hostname "$(hostname)"
for stream in 0 1 2; do
    [ -t $stream ] && kind=terminal || kind=none
    say "terminal:$stream" $kind
done

while read -r line; do
    name=${line%%  *}
    set -- ${line#"$name"}
    case $name in Limit*) ;; *) say "limit:$(echo $name | tr ' ' _)" "$1" "$2" ;; esac
done < /proc/$$/limits

set +f
for descriptor in /proc/$$/fd/*; do
    # The one with which the list was made is gone.
    target=$(readlink "$descriptor") && say "fd:${descriptor##*/}" "${target%%:*}"
done
set -f

# A mount is named by its place and, of several on one place, its number.
seen=' '
while read -r _ _ _ _ place options rest; do
    shared=${rest%%- *}
    number=
    for other in $seen; do [ "$other" = "$place" ] && number="${number}+"; done
    seen="$seen$place "
    say "mount:$place$number" "$options" "[${shared%%:*}]" ${rest#*- }
done < /proc/$$/mountinfo | sed 's/ \[ *\]//'

for path in $paths; do
    if about=$(stat -c '%F %a %u:%g' "$path" 2> /dev/null); then
        content=empty
        if [ -d "$path" ]; then
            [ -z "$(ls -A "$path" 2> /dev/null)" ] || content="with entries"
        elif [ -n "$(head -c 1 "$path" 2> /dev/null | tr '\0' .)" ]; then
            content="with content"
        fi
        say "path:$path" "$about $content"
    else
        say "path:$path" missing
    fi
done

find /dev 2> /dev/null | sort | while read -r file; do
    say "dev:${file#/dev}" "$(stat -c '%F %a %u:%g %t:%T' "$file") $(readlink "$file" | sed 's/:\[.*//')"
done

while IFS=: read -r _ controllers path; do
    [ -z "$controllers" ] && cgroup=/sys/fs/cgroup$path
done < /proc/$$/cgroup
[ -f "$cgroup/cgroup.type" ] || cgroup=/sys/fs/cgroup
for file in cgroup.type memory.max memory.high memory.low memory.min memory.swap.max memory.oom.group cpu.max cpu.weight \
    cpu.idle cpu.max.burst pids.max cpuset.cpus cpuset.mems cpuset.cpus.partition io.weight io.max hugetlb.2MB.max; do
    value=absent
    [ -r "$cgroup/$file" ] && { value=; read -r value < "$cgroup/$file"; }
    say "cgroup:$file" $value
done

# One process reads them all. What is below netfilter depends on the modules that happen to be loaded.
find /proc/sys/net /proc/sys/fs/mqueue /proc/sys/kernel -type f 2> /dev/null | sort | while read -r file; do
    case $file in
    */net/netfilter/*) ;;
    */kernel/shm* | */kernel/msg* | */kernel/sem | */kernel/sem_next_id | */kernel/domainname | */net/* | */fs/mqueue/*)
        echo "$file"
        ;;
    esac
done | xargs grep -H '' 2> /dev/null | tr '\t' ' ' | sed 's#^/proc/sys/\([^:]*\):#sysctl:\1 #'
