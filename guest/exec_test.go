package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLookup(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"bin/run": 0o755, "other/run": 0o755, "bin/plain": 0o644, "other/both": 0o755, "bin/both": 0o644} {
		p := filepath.Join(dir, name)
		os.MkdirAll(filepath.Dir(p), 0o755)
		if err := os.WriteFile(p, []byte("#!/nonesuch\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	bin, other := filepath.Join(dir, "bin"), filepath.Join(dir, "other")
	for _, tt := range []struct {
		name, dir, path string
		want            string // a path, or a status
	}{
		{"run", "/", bin + ":" + other, bin + "/run"},
		{"run", "/", other + ":" + bin, other + "/run"},
		{"run", "/", "/nonesuch:" + bin, bin + "/run"},
		{"both", "/", bin + ":" + other, other + "/both"},
		{"plain", "/", bin, "126"},
		{"nonesuch", "/", bin, "127"},
		{"run", "/", "", "127"},
		{"run", bin, ":/nonesuch", "./run"},
		{"run", dir, "bin", "./bin/run"},
		{"./run", bin, "", "./run"},
		{"bin/run", dir, "", "bin/run"},
		{"./run", dir, bin, "127"},
		{"./run/x", bin, "", "127"},
		{bin, "/", "", "126"},
	} {
		got, err := lookup(tt.name, tt.dir, tt.path)
		if e, ok := err.(*startError); ok {
			got = map[int]string{126: "126", 127: "127"}[e.status]
			if e.Error() == "" {
				t.Errorf("%s: no message", tt.name)
			}
		}
		if got != tt.want {
			t.Errorf("lookup(%q, %q, %q) = %q (%v), want %q", tt.name, tt.dir, tt.path, got, err, tt.want)
		}
	}
	c := agent(t, ServerConfig{})
	exit, err := c.Exec(context.Background(), Cmd{Args: []string{bin + "/run"}}, nil)
	if err != nil || exit.Started || exit.Code != 127 || !strings.Contains(exit.Message, "bad interpreter") {
		t.Errorf("a script without its interpreter: %+v, %v", exit, err)
	}
	exit, err = c.Exec(context.Background(), Cmd{Args: []string{"./run"}, Dir: bin}, nil)
	if err != nil || exit.Code != 127 {
		t.Errorf("the same from its folder: %+v, %v", exit, err)
	}
	if err := os.WriteFile(bin+"/text", []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	exit, err = c.Exec(context.Background(), Cmd{Args: []string{bin + "/text"}}, nil)
	if err != nil || exit.Started || exit.Code != 126 {
		t.Errorf("a file that is no program: %+v, %v", exit, err)
	}
}

func TestCredential(t *testing.T) {
	for _, tt := range []struct {
		name     string
		uid, gid uint32
		fails    bool
	}{
		{"root", 0, 0, false},
		{"0", 0, 0, false},
		{"12:34", 12, 34, false},
		{"4040404", 4040404, 4040404, false},
		{"nonesuch-user", 0, 0, true},
		{"-1:0", 0, 0, true},
		{"root:root", 0, 0, true},
		{"1:", 0, 0, true},
		{"4294967296:0", 0, 0, true},
	} {
		c, err := credential(tt.name)
		if (err != nil) != tt.fails {
			t.Errorf("%q: %v", tt.name, err)
		}
		if err == nil && (c.Uid != tt.uid || c.Gid != tt.gid) {
			t.Errorf("%q: %d:%d", tt.name, c.Uid, c.Gid)
		}
	}
	if c, err := credential(""); c != nil || err != nil {
		t.Errorf("nobody: %v, %v", c, err)
	}
}

func TestUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	c := agent(t, ServerConfig{})
	for user, want := range map[string]string{"": "0 0 /keep", "nobody": "65534 65534 /keep", "12:34": "12 34 /keep"} {
		cmd := sh("echo $(id -u) $(id -g) $HOME")
		cmd.User = user
		cmd.Env = append(cmd.Env, "HOME=/keep")
		var out bytes.Buffer
		if exit, err := c.Exec(context.Background(), cmd, &out); err != nil || !exit.Success() || strings.TrimSpace(out.String()) != want {
			t.Errorf("user %q: %q, want %q; %+v, %v", user, &out, want, exit, err)
		}
	}
	cmd := sh("true")
	cmd.User = "nonesuch-user"
	if exit, err := c.Exec(context.Background(), cmd, nil); err != nil || exit.Started || exit.Code != 126 {
		t.Errorf("no such user: %+v, %v", exit, err)
	}
}

func FuzzProcStat(f *testing.F) {
	f.Add("1 (a) b) S 2 3 4 5 6")
	f.Add("1 (a")
	f.Add(") S 1 1 99999999999999999999")
	f.Add("\x00 0 0 0")
	f.Fuzz(func(t *testing.T, text string) {
		if s, ok := parseStat(text); ok && s.state == 0 {
			t.Errorf("%q: %+v", text, s)
		}
	})
}

// What is used is what the kernel would not give back.
func TestMemoryUsed(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("meminfo", "MemTotal:  1000 kB\nMemFree: 1 kB\nMemAvailable:   400 kB\n")
	write("odd", "MemTotal: 1000 kB\nMemAvailable: many kB\n")
	write("more", "MemTotal: 1000 kB\nMemAvailable: 1001 kB\n")
	for name, want := range map[string]int64{"meminfo": 600 << 10, "odd": 0, "more": 0, "gone": 0} {
		if got := usedOfMachine(filepath.Join(dir, name)); got != want {
			t.Errorf("machine, %s: %d, want %d", name, got, want)
		}
	}
	write("v2/memory.current", "5000\n")
	write("v2/memory.stat", "anon 3000\ninactive_file 1500\n")
	write("v1/memory/memory.usage_in_bytes", "7000\n")
	write("v1/memory/memory.stat", "cache 100\ninactive_file 1\ntotal_inactive_file 500\n")
	write("max/memory.current", "max\n")
	write("half/memory.current", "5000\n")
	for name, want := range map[string]int64{"v2": 3500, "v1": 6500, "max": 0, "half": 0, "gone": 0} {
		if got := usedOfCgroup(filepath.Join(dir, name)); got != want {
			t.Errorf("control group, %s: %d, want %d", name, got, want)
		}
	}
}

// A process's processor time is its own and its children's; of memory an agent without a machine says nothing, one with a
// machine has looked at it before a long process ends.
func TestUsage(t *testing.T) {
	for name, cfg := range map[string]ServerConfig{"a process": {}, "a machine": {Machine: true}} {
		c := agent(t, cfg)
		exit, err := c.Exec(t.Context(), Cmd{Args: []string{"/bin/sh", "-c", "end=$(($(date +%s)+2)); (while [ $(date +%s) -lt $end ]; do :; done); :"}, Env: []string{"PATH=/usr/bin:/bin"}}, nil)
		if err != nil || !exit.Success() {
			t.Fatalf("%s: %+v, %v", name, exit, err)
		}
		if exit.CPU <= 0 || (exit.Memory > 0) != cfg.Machine {
			t.Errorf("%s: %v of the processors, %d bytes", name, exit.CPU, exit.Memory)
		}
	}
}

// What an agent says of itself is bounded before anybody counts with it.
func TestUsageBounded(t *testing.T) {
	for _, tt := range []struct{ cpu, memory, wantCPU, wantMemory int64 }{
		{-1, -1, 0, 0}, {5, 6, 5, 6}, {math.MaxInt64, math.MaxInt64, maxCPU, maxMemory}, {math.MinInt64, math.MinInt64, 0, 0},
	} {
		b, err := json.Marshal(wireExit{Started: true, CPU: tt.cpu, Memory: tt.memory})
		if err != nil {
			t.Fatal(err)
		}
		got, err := (&call{op: opExec}).exit(b)
		if err != nil || int64(got.CPU) != tt.wantCPU || got.Memory != tt.wantMemory {
			t.Errorf("%+v: %+v, %v", tt, got, err)
		}
	}
}
