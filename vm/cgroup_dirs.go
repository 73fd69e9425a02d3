package vm

import (
	"errors"
	"os"
	"path/filepath"
)

// CgroupDirs is the control group that an OCI runtime makes for a machine, in every hierarchy of the host.
type CgroupDirs struct {
	Path string // below the root of each hierarchy, as the runtime wants it: /tgr/NAME
	oom  []string
}

// JournalCgroups chooses the path of a machine's control group and journals its folders before the runtime makes them.
func JournalCgroups(r *Record) (CgroupDirs, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return CgroupDirs{}, err
	}
	e := r.Entry()
	c := CgroupDirs{Path: "/" + cgroupParent + "/" + e.ID + "-" + e.Mark[:8]}
	for _, m := range parseMountinfo(mounts) {
		dir := filepath.Join(m.path, c.Path)
		if err := r.AddCgroup(dir); err != nil {
			return c, err
		}
		c.watch(dir)
	}
	if len(c.oom) == 0 {
		return c, errors.New("no cgroup hierarchy is mounted")
	}
	return c, nil
}

// FindCgroupDirs is the control group that JournalCgroups has written down, for who adopts the machine. Its Path is not known.
func FindCgroupDirs(r *Record) (c CgroupDirs) {
	for _, dir := range r.Entry().Cgroups {
		c.watch(dir)
	}
	return c
}

func (c *CgroupDirs) watch(dir string) {
	c.oom = append(c.oom, filepath.Join(dir, "memory.events"), filepath.Join(dir, "memory.oom_control"))
}

// OutOfMemory reports whether the kernel has killed a process of the group because of its limit of memory.
func (c CgroupDirs) OutOfMemory() bool {
	for _, path := range c.oom {
		if b, err := os.ReadFile(path); err == nil && oomKills(string(b)) > 0 {
			return true
		}
	}
	return false
}
