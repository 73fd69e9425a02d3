package guest

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// memoryPerProcess is how much memory a machine has for each process and thread that may run in it, in bytes: half
	// as many as its kernel would let be, so that they end before the memory does.
	memoryPerProcess = 512 << 10
	minProcesses     = 256
	// A group whose programs were refused processes in so many looks while it was full is ended: it is at its limit and
	// goes on to ask for more, which no program that has other work does.
	maxStrikes  = 3
	strikeEvery = time.Second

	killWithin = 10 * time.Second // from a group's first killed process to its last
)

// jobGroup is the control group of what the host asked for. It bounds the number of processes, and all of them together
// weigh as much as the agent where both want a processor: a job that starts ever more of them leaves the agent room to
// end it and to say why. It is no boundary: a job is root.
type jobGroup struct {
	dir  *os.File
	most int
	log  *slog.Logger

	ending sync.RWMutex // locked while what is in the group is ended, who joins it meanwhile included; read to start a process
}

// makeJobGroup makes the group below the mounted hierarchy of version 2 at root.
func makeJobGroup(root string) error {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("size of the memory: %w", err)
	}
	most := max(minProcesses, info.Totalram*uint64(info.Unit)/memoryPerProcess)
	dir := jobGroupDir(root)
	if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+pids +cpu"), 0); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "pids.max"), strconv.AppendUint(nil, most, 10), 0)
}

func jobGroupDir(root string) string { return filepath.Join(root, "tgr-job") }

const cgroupMount = "/sys/fs/cgroup"

// openJobGroup opens the group that Boot has made; nil where there is none.
func openJobGroup(root string, log *slog.Logger) *jobGroup {
	b, err := os.ReadFile(filepath.Join(jobGroupDir(root), "pids.max"))
	if err != nil {
		return nil
	}
	most, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return nil
	}
	dir, err := os.Open(jobGroupDir(root))
	if err != nil {
		return nil
	}
	return &jobGroup{dir: dir, most: most, log: log}
}

// admit has a process begin in the group, once that is not being ended. The caller says when the process has begun.
func (g *jobGroup) admit(cmd *command) (begun func()) {
	if g == nil {
		return func() {}
	}
	g.ending.RLock()
	cmd.attr.Sys.UseCgroupFD, cmd.attr.Sys.CgroupFD = true, int(g.dir.Fd())
	return g.ending.RUnlock
}

// refused is how many times a process was refused.
func (g *jobGroup) refused() uint64 {
	b, err := os.ReadFile(filepath.Join(g.dir.Name(), "pids.events"))
	if err != nil {
		return 0
	}
	return counted(string(b), "max")
}

// full reports whether there is not much room left: what is refused a process may give up a few.
func (g *jobGroup) full() bool {
	b, err := os.ReadFile(filepath.Join(g.dir.Name(), "pids.current"))
	if err != nil {
		return false
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	return err == nil && n >= g.most/4*3
}

// kill ends everything that runs in the group, and returns when nothing does any more. It does not write cgroup.kill: with
// Debian's Linux 6.1.176 the next that is started into the group by clone3 is killed as it begins.
func (g *jobGroup) kill() error {
	g.ending.Lock()
	defer g.ending.Unlock()
	freeze := filepath.Join(g.dir.Name(), "cgroup.freeze")
	if err := os.WriteFile(freeze, []byte("1"), 0); err != nil { // who forks now has a child that stands still, too
		return err
	}
	err := g.killAll(time.Now().Add(killWithin))
	return errors.Join(err, os.WriteFile(freeze, []byte("0"), 0))
}

func (g *jobGroup) killAll(until time.Time) error {
	changes, err := unix.Open(filepath.Join(g.dir.Name(), "cgroup.events"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cgroup.events: %w", err)
	}
	defer unix.Close(changes)
	for {
		b, err := os.ReadFile(filepath.Join(g.dir.Name(), "cgroup.procs"))
		pids := strings.Fields(string(b))
		switch {
		case err != nil:
			return err
		case len(pids) == 0:
			return nil
		case time.Now().After(until):
			return fmt.Errorf("%d processes run on after %v", len(pids), killWithin)
		}
		for _, text := range pids {
			if pid, err := strconv.Atoi(text); err == nil && pid > 0 {
				unix.Kill(pid, unix.SIGKILL) // ESRCH: it has ended
			}
		}
		unix.Pread(changes, make([]byte, 64), 0) // what was read is what changes are told from
		unix.Poll([]unix.PollFd{{Fd: int32(changes), Events: unix.POLLPRI}}, 50)
	}
}

// events opens the file that changes when a process is refused.
func (g *jobGroup) events() (*os.File, error) {
	path := filepath.Join(g.dir.Name(), "pids.events")
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0) // so that no thread waits for it
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// awaitRefusal waits until the file changes that events has opened.
func awaitRefusal(events *os.File) error {
	if _, err := events.ReadAt(make([]byte, 64), 0); err != nil && err != io.EOF {
		return err // what was read is what changes are told from
	}
	raw, err := events.SyscallConn()
	if err != nil {
		return err
	}
	var perr error
	err = raw.Read(func(fd uintptr) bool {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}}
		_, perr = unix.Poll(fds, 0)
		return perr != nil && perr != unix.EINTR || fds[0].Revents&unix.POLLPRI != 0
	})
	return errors.Join(err, perr)
}

// guard ends what is in the group when it does not stop asking for more processes than it may have. It costs nothing while
// nothing is refused, and returns only when it cannot find out.
func (g *jobGroup) guard() {
	events, err := g.events()
	if err == nil {
		defer events.Close()
	}
	for err == nil {
		if err = awaitRefusal(events); err != nil {
			break
		}
		strikes := 0
		for last := g.refused(); strikes < maxStrikes; {
			time.Sleep(strikeEvery)
			if !g.full() {
				break
			}
			if now := g.refused(); now != last {
				last = now
				strikes++
			}
		}
		if strikes < maxStrikes {
			continue
		}
		g.log.Warn("the job's processes are ended: there are too many, and they go on starting more", "limit", g.most)
		if err := g.kill(); err != nil {
			g.log.Error("end the job's processes", "err", err)
		}
	}
	g.log.Error("nobody looks any more whether the job stops at its limit of processes", "err", err)
}

// shortages finds out what a machine had too little of when a process failed. Its zero value knows of nothing.
type shortages struct {
	group *jobGroup // nil: processes are not counted

	mu       sync.Mutex
	oomKills uint64 // that were seen
	refusals uint64 // of processes, that were seen
}

// look is what the machine ran out of since the last look; "" for nothing. vmstat is the file in which the kernel
// counts whom it has killed for want of memory, and disk a path on the machine's own disk.
func (s *shortages) look(vmstat, disk string) Shortage {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := full(disk)
	if b, err := os.ReadFile(vmstat); err == nil {
		n := counted(string(b), "oom_kill")
		if n > s.oomKills {
			found = OutOfMemory
		}
		s.oomKills = n
	}
	if s.group != nil {
		n := s.group.refused()
		if n > s.refusals {
			found = OutOfProcesses
		}
		s.refusals = n
	}
	return found
}

// full is what the disk at path has no room for any more: OutOfDisk or OutOfFiles; "" where there is room.
func full(path string) Shortage {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil || st.Blocks == 0 {
		return ""
	}
	const few = 64 << 10 // bytes: less than a file of some size wants at once
	switch {
	case st.Bavail*uint64(st.Bsize) < few:
		return OutOfDisk
	case st.Files > 0 && st.Ffree == 0:
		return OutOfFiles
	}
	return ""
}

// counted is the number behind a word at the beginning of a line; 0 where there is none.
func counted(text, word string) uint64 {
	for line := range strings.Lines(text) {
		digits, ok := strings.CutPrefix(line, word+" ")
		if n, err := strconv.ParseUint(strings.TrimSpace(digits), 10, 64); ok && err == nil {
			return n
		}
	}
	return 0
}
