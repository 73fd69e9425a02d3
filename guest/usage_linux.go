package guest

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// usageEvery is how often the agent looks at how much memory is used, while a process that was asked for runs. What
// comes and goes in between is not seen.
const usageEvery = 250 * time.Millisecond

// memory says how many bytes of memory all that runs here uses, without the caches that the kernel would give back; 0:
// it cannot be told apart from what others use.
func (c ServerConfig) memory() func() int64 {
	switch {
	case c.Machine:
		return func() int64 { return usedOfMachine("/proc/meminfo") }
	case c.Cgroup != "":
		return func() int64 { return usedOfCgroup(c.Cgroup) }
	}
	return nil
}

// usedOfMachine reads proc(5)'s meminfo.
func usedOfMachine(file string) int64 {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	total, available := field(b, "MemTotal:"), field(b, "MemAvailable:")
	if available <= 0 {
		return 0
	}
	return max(0, total-available) << 10
}

// usedOfCgroup reads the files of a control group's memory, of version 2 or 1, where dir is the group's own root.
func usedOfCgroup(dir string) int64 {
	for _, v := range []struct{ usage, stat, cache string }{
		{"memory.current", "memory.stat", "inactive_file"},
		{"memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"},
	} {
		b, err := os.ReadFile(filepath.Join(dir, v.usage))
		if err != nil {
			continue
		}
		used, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		if err != nil {
			return 0
		}
		stat, err := os.ReadFile(filepath.Join(dir, v.stat))
		if err != nil {
			return 0
		}
		return max(0, used-field(stat, v.cache))
	}
	return 0
}

// field finds the number after a name at the beginning of a line, 0 if it is not there.
func field(text []byte, name string) int64 {
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == name {
			n, err := strconv.ParseInt(f[1], 10, 64)
			if err != nil {
				return 0
			}
			return n
		}
	}
	return 0
}

// end is how a process ended.
type end struct {
	status syscall.WaitStatus
	usage  syscall.Rusage // of the process and of those that it has waited for
}

// await waits for the process's end, and looks now and then at how much memory is used until then.
func (p *process) await() end {
	used := p.s.cfg.memory()
	if used == nil {
		return <-p.ended
	}
	tick := time.NewTicker(usageEvery)
	defer tick.Stop()
	for {
		select {
		case e := <-p.ended:
			if p.exit.Memory > 0 { // the largest process is known exactly, and may have come and gone between two looks
				p.exit.Memory = max(p.exit.Memory, e.usage.Maxrss<<10)
			}
			return e
		case <-tick.C:
			p.exit.Memory = max(p.exit.Memory, used())
		}
	}
}
