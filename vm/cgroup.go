package vm

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Limits bound what a machine's processes may take of the host. A field that is 0 bounds nothing.
type Limits struct {
	Memory int64   // bytes, page cache included
	CPUs   float64 // processors' worth of time
	PIDs   int     // processes and threads
}

// Cgroups makes control groups for machines, in the hierarchies that the host has: version 2, version 1, or some
// controllers in either (cgroups(7)). It is safe for concurrent use.
type Cgroups struct {
	roots map[string]cgroupRoot // by controller
}

type cgroupRoot struct {
	path string // of the folder that machines' groups are made in
	v2   bool
}

// cgroupParent is the folder of all machines' groups in the root of each hierarchy: outside of the server's own group,
// so that whoever ends that does not end the machines.
const cgroupParent = "tgr"

// controllers are what Limits needs.
func controllers() []string { return []string{"cpu", "memory", "pids"} }

// FindCgroups looks for the hierarchies of this host and makes the folders that machines' groups go into. The error
// says which controller is missing and why: then machines cannot be limited, and somebody should know.
func FindCgroups() (*Cgroups, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	c := &Cgroups{roots: map[string]cgroupRoot{}}
	var errs []error
	for _, name := range controllers() {
		root, err := findCgroup(mounts, name)
		if err == nil {
			err = root.prepare(name)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("cgroup controller %s: %w", name, err))
			continue
		}
		c.roots[name] = root
	}
	return c, errors.Join(errs...)
}

// cgroupMount is a mounted hierarchy.
type cgroupMount struct {
	path    string
	v2      bool
	options []string // of version 1: its controllers among others
}

// parseMountinfo lists the cgroup hierarchies of proc(5)'s mountinfo that are mounted whole.
func parseMountinfo(b []byte) []cgroupMount {
	var mounts []cgroupMount
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		head, tail, ok := strings.Cut(lines.Text(), " - ")
		f, t := strings.Fields(head), strings.Fields(tail)
		if !ok || len(f) < 6 || len(t) < 3 || f[3] != "/" {
			continue
		}
		switch t[0] {
		case "cgroup2":
			mounts = append(mounts, cgroupMount{path: f[4], v2: true})
		case "cgroup":
			mounts = append(mounts, cgroupMount{path: f[4], options: strings.Split(t[2], ",")})
		}
	}
	return mounts
}

// findCgroup finds the hierarchy that has a controller.
func findCgroup(mountinfo []byte, name string) (cgroupRoot, error) {
	for _, m := range parseMountinfo(mountinfo) {
		has := slices.Contains(m.options, name)
		if m.v2 {
			b, err := os.ReadFile(filepath.Join(m.path, "cgroup.controllers"))
			has = err == nil && slices.Contains(strings.Fields(string(b)), name)
		}
		if has {
			return cgroupRoot{filepath.Join(m.path, cgroupParent), m.v2}, nil
		}
	}
	return cgroupRoot{}, errors.New("no mounted hierarchy has it")
}

// prepare makes the folder for machines' groups, and has version 2 pass the controller on to it.
func (r cgroupRoot) prepare(controller string) error {
	if err := os.Mkdir(r.path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if !r.v2 {
		return unix.Access(r.path, unix.W_OK)
	}
	for _, dir := range []string{filepath.Dir(r.path), r.path} {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0); err != nil {
			return err
		}
	}
	return nil
}

// Cgroup is the group of one machine, in each hierarchy that has a controller for it. A nil Cgroup is that of a machine
// without limits: its methods do nothing.
type Cgroup struct {
	dirs []string
	cpu  cgroupRoot // the group's own folder for processors; path "" where there is none
	oom  string     // the file that counts processes killed for want of memory
}

// Make makes a machine's group and journals it first: Record.Free removes it, after what is in it was killed.
func (c *Cgroups) Make(r *Record, l Limits) (*Cgroup, error) {
	e := r.Entry()
	name := e.ID + "-" + e.Mark[:8] // two servers may have machines of the same id
	g := &Cgroup{}
	for _, controller := range controllers() {
		root, ok := c.roots[controller]
		if !ok {
			continue
		}
		dir := filepath.Join(root.path, name)
		if !slices.Contains(g.dirs, dir) {
			if err := r.AddCgroup(dir); err != nil {
				return nil, err
			}
			if err := os.Mkdir(dir, 0o755); err != nil {
				return nil, fmt.Errorf("cgroup of machine %s: %w", e.ID, err)
			}
			g.dirs = append(g.dirs, dir)
		}
		g.note(controller, dir, root.v2)
		for file, value := range l.files(controller, root.v2) {
			if err := os.WriteFile(filepath.Join(dir, file), []byte(value), 0); err != nil {
				return nil, fmt.Errorf("cgroup of machine %s: %s: %w", e.ID, file, err)
			}
		}
	}
	return g, nil
}

// Find returns the group that Make made for a machine; nil: it has none.
func (c *Cgroups) Find(r *Record) *Cgroup {
	g := &Cgroup{dirs: r.Entry().Cgroups}
	for controller, root := range c.roots {
		for _, dir := range g.dirs {
			if filepath.Dir(dir) == filepath.Clean(root.path) {
				g.note(controller, dir, root.v2)
			}
		}
	}
	if len(g.dirs) == 0 {
		return nil
	}
	return g
}

// note keeps the files of a controller that are wanted later.
func (g *Cgroup) note(controller, dir string, v2 bool) {
	switch controller {
	case "cpu":
		g.cpu = cgroupRoot{dir, v2}
	case "memory":
		g.oom = filepath.Join(dir, map[bool]string{true: "memory.events", false: "memory.oom_control"}[v2])
	}
}

// cgroupPeriod is the time that a limit of processors is kept over, in microseconds.
const cgroupPeriod = 100_000

// files are the contents of a controller's files.
func (l Limits) files(controller string, v2 bool) map[string]string {
	quota := strconv.FormatInt(int64(math.Round(l.CPUs*cgroupPeriod)), 10)
	switch {
	case controller == "memory" && l.Memory > 0 && v2:
		return map[string]string{"memory.max": strconv.FormatInt(l.Memory, 10), "memory.oom.group": "1"}
	case controller == "memory" && l.Memory > 0:
		return map[string]string{"memory.limit_in_bytes": strconv.FormatInt(l.Memory, 10)}
	case controller == "cpu" && l.CPUs > 0 && v2:
		return map[string]string{"cpu.max": quota + " " + strconv.Itoa(cgroupPeriod)}
	case controller == "cpu" && l.CPUs > 0:
		return map[string]string{"cpu.cfs_quota_us": quota}
	case controller == "pids" && l.PIDs > 0:
		return map[string]string{"pids.max": strconv.Itoa(l.PIDs)}
	}
	return nil
}

// Add moves a process with all its threads into the group.
func (g *Cgroup) Add(pid int) error {
	if g == nil {
		return nil
	}
	for _, dir := range g.dirs {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			return fmt.Errorf("cgroup %s: process %d: %w", dir, pid, err)
		}
	}
	return nil
}

// Yield has the group take only the processors' time that nobody else wants, or the same share as others again.
func (g *Cgroup) Yield(back bool) error {
	file, value := "cpu.shares", map[bool]string{true: "2", false: "1024"}[back]
	switch {
	case g == nil:
		return nil
	case g.cpu.path == "":
		return errors.New("there is no cgroup controller of processors")
	case g.cpu.v2:
		file, value = "cpu.weight", map[bool]string{true: "1", false: "100"}[back]
	}
	return os.WriteFile(filepath.Join(g.cpu.path, file), []byte(value), 0)
}

// OutOfMemory reports whether the kernel has killed a process of the group because of its limit of memory.
func (g *Cgroup) OutOfMemory() bool {
	if g == nil {
		return false
	}
	b, err := os.ReadFile(g.oom)
	if err != nil {
		return false
	}
	return oomKills(string(b)) > 0
}

// oomKills reads the count of memory.events (version 2) and memory.oom_control (version 1).
func oomKills(text string) int {
	for line := range strings.Lines(text) {
		var n int
		if _, err := fmt.Sscanf(line, "oom_kill %d", &n); err == nil {
			return n
		}
	}
	return 0
}

// removeCgroupWithin bounds removeCgroup where ctx does not.
const removeCgroupWithin = 10 * time.Second

// removeCgroup kills what is in a group and removes it. A folder that is not a group is left alone.
func removeCgroup(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, removeCgroupWithin)
	defer cancel()
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); errors.Is(err, unix.ENOENT) {
		return nil
	} else if err != nil {
		return fmt.Errorf("cgroup %s: %w", dir, err)
	}
	if fs.Type != unix.CGROUP_SUPER_MAGIC && fs.Type != unix.CGROUP2_SUPER_MAGIC {
		return fmt.Errorf("cgroup %s: it is none", dir)
	}
	for {
		pids, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err == nil {
			for _, f := range strings.Fields(string(pids)) {
				pid, _ := strconv.Atoi(f)
				if p, err := FindProcess(pid); err == nil {
					p.Kill()
				}
			}
		}
		// What was killed leaves the group a moment later.
		if err = unix.Rmdir(dir); err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cgroup %s: %w", dir, err)
		case <-time.After(time.Millisecond):
		}
	}
}
