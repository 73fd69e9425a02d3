package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process names a process so that no other is ever taken for it: a pid is used again, and a boot starts the
// clock that start times are counted on anew.
type Process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // field 22 of /proc/pid/stat, in clock ticks since boot
	Boot  string `json:"boot"`  // /proc/sys/kernel/random/boot_id
}

// markKey begins Record.Env.
const markKey = "TGR_MACHINE="

// killWithin bounds KillTrees where ctx does not.
const killWithin = 10 * time.Second

// stat is what we read of /proc/pid/stat.
type stat struct {
	pid, parent int
	state       byte // 'Z': dead, and not yet waited for
	start       uint64
}

// FindProcess returns the identity of the process that has this pid now.
func FindProcess(pid int) (Process, error) {
	s, err := readStat(pid)
	if err != nil {
		return Process{}, fmt.Errorf("process %d: %w", pid, err)
	}
	boot, err := bootID()
	if err != nil {
		return Process{}, err
	}
	return Process{PID: pid, Start: s.start, Boot: boot}, nil
}

// Alive reports whether this very process exists; a zombie is dead.
func (p Process) Alive() bool {
	s, err := readStat(p.PID)
	if err != nil || s.start != p.Start || s.state == 'Z' || s.state == 'X' {
		return false
	}
	boot, err := bootID()
	return err == nil && boot == p.Boot
}

// Kill sends SIGKILL to this very process, and reports whether it was there to be killed.
func (p Process) Kill() bool { return p.signal(unix.SIGKILL) }

func (p Process) signal(sig unix.Signal) bool {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	// The descriptor holds on to whatever has the pid now; if that is p, no other can be hit.
	return p.Alive() && unix.PidfdSendSignal(fd, sig, nil, 0) == nil
}

// KillTrees kills processes with everything that descends from them and returns when all are gone, with how
// many there were. Descendants are stopped before any is killed, so that none can fork ahead of us, and the
// roots go last: a root that is a subreaper inherits what its children orphan, and so hides nothing.
func KillTrees(ctx context.Context, roots []Process) (killed int, err error) {
	ctx, cancel := context.WithTimeout(ctx, killWithin)
	defer cancel()
	seen := map[Process]bool{}
	stop := func(ps []Process) (fresh bool) {
		for _, p := range ps {
			if !seen[p] {
				seen[p], fresh = true, true
				p.signal(unix.SIGSTOP)
			}
		}
		return fresh
	}
	stop(living(roots)) // before the first look, which then need not be repeated for what they start
	for {
		alive, below, err := trees(roots)
		if err != nil {
			return len(seen), err
		}
		if len(alive) == 0 {
			return len(seen), nil
		}
		if stop(append(below, alive...)) {
			continue
		}
		// All that there is was stopped before it was last looked for: nothing of it has forked since.
		for _, ps := range [][]Process{below, alive} {
			if err := killAndWait(ctx, ps); err != nil {
				return len(seen), err
			}
		}
	}
}

// killAndWait kills processes and returns when they are dead.
func killAndWait(ctx context.Context, ps []Process) error {
	for _, p := range ps {
		p.Kill()
	}
	for _, p := range ps {
		for p.Alive() {
			if ctx.Err() != nil {
				return fmt.Errorf("process %d outlives SIGKILL: %w", p.PID, context.Cause(ctx))
			}
			p.await(10 * time.Millisecond)
		}
	}
	return nil
}

// Wait returns when this very process is dead, whoever its parent is. It does not tell how it ended.
func (p Process) Wait() {
	for p.Alive() {
		p.await(time.Minute)
	}
}

// await returns when the process is dead, or after d.
func (p Process) await(d time.Duration) {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if p.Alive() { // the descriptor is of this very process
		unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(d.Milliseconds()))
	}
}

// living returns those that are alive.
func living(ps []Process) (alive []Process) {
	for _, p := range ps {
		if p.Alive() {
			alive = append(alive, p)
		}
	}
	return alive
}

// trees returns those of the roots that are alive, and everything alive that descends from them.
func trees(roots []Process) (alive, below []Process, err error) {
	if alive = living(roots); len(alive) == 0 {
		return nil, nil, nil
	}
	children, err := children()
	if err != nil {
		return nil, nil, err
	}
	boot := alive[0].Boot
	isRoot := map[int]bool{}
	var next []int
	for _, p := range alive {
		isRoot[p.PID] = true
		next = append(next, p.PID)
	}
	for len(next) > 0 {
		var after []int
		for _, pid := range next {
			for _, s := range children[pid] {
				after = append(after, s.pid)
				if s.state != 'Z' && s.state != 'X' && !isRoot[s.pid] {
					below = append(below, Process{PID: s.pid, Start: s.start, Boot: boot})
				}
			}
		}
		next = after
	}
	return alive, below, nil
}

// Children returns the processes, dead ones that nobody has waited for included, whose parent has this pid now.
func Children(pid int) ([]Process, error) {
	all, err := children()
	if err != nil {
		return nil, err
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	var list []Process
	for _, s := range all[pid] {
		list = append(list, Process{PID: s.pid, Start: s.start, Boot: boot})
	}
	return list, nil
}

// children maps each pid to the processes whose parent it is.
func children() (map[int][]stat, error) {
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer proc.Close()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	// A host has hundreds of processes, and a machine is not freed before they were looked at: no more than three
	// calls of the kernel for each.
	m := map[int][]stat{}
	var buf [1024]byte
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		fd, err := unix.Openat(int(proc.Fd()), name+"/stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		n, err := unix.Read(fd, buf[:])
		unix.Close(fd)
		if err != nil {
			continue
		}
		if s, err := parseStat(pid, string(buf[:n])); err == nil {
			m[s.parent] = append(m[s.parent], s)
		}
	}
	return m, nil
}

// findMarked returns the processes that have Record.Env in their environment.
func findMarked(mark string) []Process {
	if mark == "" {
		return nil
	}
	pids, err := pids()
	if err != nil {
		return nil
	}
	var found []Process
	for _, pid := range pids {
		env, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "environ"))
		if err != nil || !bytes.Contains(append([]byte{0}, env...), []byte("\x00"+markKey+mark+"\x00")) {
			continue
		}
		if p, err := FindProcess(pid); err == nil {
			found = append(found, p)
		}
	}
	return found
}

func pids() ([]int, error) {
	d, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// readStat reads /proc/pid/stat. The program's name, in parentheses, may hold anything, parentheses too.
func readStat(pid int) (stat, error) {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return stat{}, err
	}
	return parseStat(pid, string(b))
}

func parseStat(pid int, text string) (stat, error) {
	s := stat{pid: pid}
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:]) // the first is field 3, the state
	if len(fields) < 20 || len(fields[0]) != 1 {
		return stat{}, errors.New("/proc/pid/stat: too short")
	}
	s.state = fields[0][0]
	var err1, err2 error
	s.parent, err1 = strconv.Atoi(fields[1])
	s.start, err2 = strconv.ParseUint(fields[19], 10, 64)
	return s, errors.Join(err1, err2)
}

// CPUTime is how long the threads of a process have run so far, to the nanosecond. Those that have ended do not count.
func CPUTime(pid int) (time.Duration, error) {
	tasks, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task", "*", "schedstat"))
	if err != nil || len(tasks) == 0 {
		return 0, fmt.Errorf("process %d: no threads: %w", pid, errors.Join(err, os.ErrNotExist))
	}
	var sum time.Duration
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue
		}
		var ns int64
		if _, serr := fmt.Sscan(string(b), &ns); err != nil || serr != nil {
			return 0, fmt.Errorf("process %d: %w", pid, errors.Join(err, serr))
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}
