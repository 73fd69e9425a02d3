package vm

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseMountinfo(t *testing.T) {
	got := parseMountinfo([]byte(`29 23 0:26 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
30 23 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
31 23 0:28 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
32 23 0:29 / /proc rw - proc proc rw
nonsense - cgroup
`))
	want := []cgroupMount{{"/sys/fs/cgroup/unified", true, nil}, {"/sys/fs/cgroup/cpu,cpuacct", false, []string{"rw", "cpu", "cpuacct"}}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(cgroupMount{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := findCgroup([]byte("31 23 0:28 / /nonexistent rw - cgroup cgroup rw,memory\n"), "pids"); err == nil {
		t.Error("a controller was found that is not there")
	}
	if r, err := findCgroup([]byte("31 23 0:28 / /nonexistent rw - cgroup cgroup rw,memory\n"), "memory"); err != nil || r.path != "/nonexistent/tgr" || r.v2 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestLimitFiles(t *testing.T) {
	l := Limits{Memory: 5 << 20, CPUs: 1.5, PIDs: 9}
	for _, tt := range []struct {
		controller string
		v2         bool
		want       map[string]string
	}{
		{"memory", true, map[string]string{"memory.max": "5242880", "memory.oom.group": "1"}},
		{"memory", false, map[string]string{"memory.limit_in_bytes": "5242880"}},
		{"cpu", true, map[string]string{"cpu.max": "150000 100000"}},
		{"cpu", false, map[string]string{"cpu.cfs_quota_us": "150000"}},
		{"pids", true, map[string]string{"pids.max": "9"}},
		{"pids", false, map[string]string{"pids.max": "9"}},
	} {
		if diff := cmp.Diff(tt.want, l.files(tt.controller, tt.v2)); diff != "" {
			t.Errorf("%s, v2 %v (-want +got):\n%s", tt.controller, tt.v2, diff)
		}
		if got := (Limits{}).files(tt.controller, tt.v2); len(got) != 0 {
			t.Errorf("no limit of %s: %v", tt.controller, got)
		}
	}
	for text, want := range map[string]int{"low 0\noom 3\noom_kill 2\n": 2, "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n": 1, "": 0} {
		if got := oomKills(text); got != want {
			t.Errorf("%q: %d", text, got)
		}
	}
}

// cgroups are this host's, where we may make groups.
func cgroups(t *testing.T) *Cgroups {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("NOT TESTED: control groups need root")
	}
	c, err := FindCgroups()
	if err != nil {
		t.Skipf("NOT TESTED: this host has not all controllers: %v", err)
	}
	return c
}

// TestCgroup puts a process into a group with limits; both go with the record, also when the server was killed.
func TestCgroup(t *testing.T) {
	c := cgroups(t)
	j := Journal{Dir: t.TempDir(), Volatile: true}
	r, err := j.Open("limited", "test")
	if err != nil {
		t.Fatal(err)
	}
	g, err := c.Make(r, Limits{Memory: 64 << 20, CPUs: 0.5, PIDs: 7})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if err := g.Add(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/cgroup")
	if err != nil || strings.Count(string(b), "/tgr/limited-") != len(g.dirs) {
		t.Errorf("the process is in\n%s%v, want %v", b, err, g.dirs)
	}
	if g.OutOfMemory() {
		t.Error("it is out of memory")
	}
	share := func() string {
		for _, name := range []string{"cpu.weight", "cpu.shares"} {
			if b, err := os.ReadFile(filepath.Join(g.cpu.path, name)); err == nil {
				return strings.TrimSpace(string(b))
			}
		}
		return "none"
	}
	whole := share()
	if err := g.Yield(true); err != nil || share() != "1" && share() != "2" {
		t.Errorf("while it yields its share is %s, %v", share(), err)
	}
	if err := g.Yield(false); err != nil || share() != whole {
		t.Errorf("afterwards its share is %s, %v; want %s", share(), err, whole)
	}
	if err := g.Add(1 << 30); err == nil {
		t.Error("a process was added that is not there")
	}
	if found := c.Find(r); found == nil || !cmp.Equal(found.dirs, g.dirs) || found.cpu != g.cpu || found.oom != g.oom {
		t.Errorf("found again: %+v; want %+v", found, g)
	}
	// The process is in no record: the group leads to it, as after a crash.
	again, err := readEntry(r.Dir())
	if err != nil || !cmp.Equal(again.Cgroups, g.dirs) {
		t.Errorf("journal: %v, %v, want %v", again.Cgroups, err, g.dirs)
	}
	if err := r.Free(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the process lives")
		cmd.Process.Kill()
	}
	for _, dir := range g.dirs {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", dir, err)
		}
	}
}

func TestCgroupOutOfMemory(t *testing.T) {
	c := cgroups(t)
	r, err := Journal{Dir: t.TempDir(), Volatile: true}.Open("eats", "test")
	if err != nil {
		t.Fatal(err)
	}
	g, err := c.Make(r, Limits{Memory: 24 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Free(context.WithoutCancel(t.Context()))
	eat := exec.Command("sh", "-c", "read go; exec tail /dev/zero") // keeps a line that never ends
	in, err := eat.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := eat.Start(); err != nil {
		t.Fatal(err)
	}
	if err := g.Add(eat.Process.Pid); err != nil {
		t.Fatal(err)
	}
	in.Write([]byte("go\n"))
	if err := eat.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("it ended: %v", err)
	}
	if !g.OutOfMemory() {
		t.Error("nobody knows why")
	}
}

func TestRemoveCgroup(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "precious")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := removeCgroup(t.Context(), dir); err == nil {
		t.Error("a folder that is no control group was removed")
	}
	if _, err := os.Stat(dir); err != nil {
		t.Error(err)
	}
	if err := removeCgroup(t.Context(), filepath.Join(dir, "gone")); err != nil {
		t.Error(err)
	}
	r, err := Journal{Dir: t.TempDir()}.Open("m", "test")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.AddCgroup("relative"); err == nil {
		t.Error("a relative path was journalled")
	}
	if err := r.Free(t.Context()); err != nil {
		t.Error(err)
	}
}
