package firecracker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// process starts the stand-in in a folder with the files that a machine needs.
func startStandin(t *testing.T) (*Client, func(name string) string) {
	t.Helper()
	binary, _ := programs(t, "1.16.1")
	dir := t.TempDir()
	for _, name := range []string{kernelFile, initrdFile, rootFile, overlayFile, logFile, metricsFile, "serial"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(binary, "--id", "test", "--api-sock", apiSocket)
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	path := func(name string) string { return filepath.Join(dir, name) }
	c := NewClient(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path(apiSocket))
	})
	t.Cleanup(c.Close)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(pollEvery) {
		if _, err := c.Version(t.Context()); err == nil {
			return c, path
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// Every call of the client conforms to Firecracker's description, at the time that it is meant for.
func TestClientCalls(t *testing.T) {
	c, path := startStandin(t)
	ctx := t.Context()
	limit := &Limiter{Bandwidth: &Bucket{Size: 1 << 20, Refill: 100, Burst: 1 << 20}, Ops: &Bucket{Size: 100, Refill: 100}}
	type step struct {
		name string
		call func() error
	}
	run := func(steps []step) {
		t.Helper()
		for _, s := range steps {
			if err := s.call(); err != nil {
				t.Errorf("%s: %v", s.name, err)
			}
		}
	}
	run([]step{
		{"logger", func() error {
			return c.PutLogger(ctx, Logger{Path: logFile, Level: "Off", ShowLevel: true, ShowOrigin: true})
		}},
		{"metrics", func() error { return c.PutMetrics(ctx, metricsFile) }},
		{"machine", func() error {
			return c.PutMachine(ctx, Machine{VCPUs: 2, MemoryMiB: 256, TrackDirty: true, HugePages: "2M"})
		}},
		{"machine update", func() error { return c.PatchMachine(ctx, MachineUpdate{MemoryMiB: 512}) }},
		{"cpu", func() error {
			return c.PutCPU(ctx, CPUConfig{Capabilities: []string{"!56"},
				CPUID: []CPUIDModifier{{Leaf: "0x1", Subleaf: "0x0", Registers: []RegisterModifier{{"eax", "0b1x"}}}},
				MSRs:  []MSRModifier{{"0x10a", "0bx0"}}})
		}},
		{"boot source", func() error {
			return c.PutBoot(ctx, BootSource{Kernel: kernelFile, Initrd: initrdFile, Args: (&Provider{}).cmdline()})
		}},
		{"root", func() error { return c.PutDrive(ctx, Drive{ID: "root", Root: true, Path: rootFile, ReadOnly: true}) }},
		{"disk", func() error {
			return c.PutDrive(ctx, Drive{ID: "overlay", Path: overlayFile, Cache: "Unsafe", Engine: "Sync", Limiter: limit})
		}},
		{"pmem", func() error { return c.PutPmem(ctx, Pmem{ID: "p0", Path: overlayFile, ReadOnly: true, Limiter: limit}) }},
		{"network", func() error {
			return c.PutNetwork(ctx, Network{ID: "eth0", Tap: noTap, MAC: "02:00:00:00:00:01", MTU: 1500, Recv: limit, Send: limit})
		}},
		{"mmds config", func() error {
			return c.PutMMDSConfig(ctx, MMDSConfig{Networks: []string{"eth0"}, Version: "V2", Address: "169.254.10.20"})
		}},
		{"mmds", func() error { return c.PutMMDS(ctx, map[string]any{"a": map[string]any{"b": 1, "c": 2}}) }},
		{"mmds update", func() error { return c.PatchMMDS(ctx, map[string]any{"a": map[string]any{"b": nil, "d": 3}}) }},
		{"vsock", func() error { return c.PutVsock(ctx, Vsock{CID: guestCID, Path: path(agentSocket)}) }},
		{"balloon", func() error {
			return c.PutBalloon(ctx, Balloon{MiB: 16, DeflateOnOOM: true, StatsEvery: 1, Hinting: true, Reporting: true})
		}},
		{"entropy", func() error { return c.PutEntropy(ctx, limit) }},
		{"serial", func() error { return c.PutSerial(ctx, "serial") }},
		{"hotplug", func() error { return c.PutHotplug(ctx, Hotplug{TotalMiB: 1024, SlotMiB: 128, BlockMiB: 2}) }},
		{"boot", func() error { return c.Boot(ctx) }},
		{"disk update", func() error {
			return c.PatchDrive(ctx, DriveUpdate{ID: "overlay", Path: overlayFile, Limiter: &Limiter{}})
		}},
		{"pmem update", func() error { return c.PatchPmem(ctx, PmemUpdate{ID: "p0", Limiter: limit}) }},
		{"network update", func() error { return c.PatchNetwork(ctx, NetworkUpdate{ID: "eth0", Recv: limit}) }},
		{"balloon update", func() error { return c.PatchBalloon(ctx, 64) }},
		{"balloon statistics", func() error { return c.PatchBalloonStats(ctx, 2) }},
		{"hinting", func() error { return c.StartHinting(ctx, true) }},
		{"hinting's end", func() error { return c.StopHinting(ctx) }},
		{"hotplug update", func() error { return c.PatchHotplug(ctx, 256) }},
		{"flush", func() error { return c.FlushMetrics(ctx) }},
		{"pause", func() error { return errors.Join(c.Pause(ctx), c.Pause(ctx)) }},
		{"snapshot", func() error {
			return c.CreateSnapshot(ctx, SnapshotFiles{State: "state", Memory: "memory", Type: "Full"})
		}},
		{"resume", func() error { return errors.Join(c.Resume(ctx), c.Resume(ctx)) }},
	})
	info, err := c.Info(ctx)
	if diff := cmp.Diff(InstanceInfo{ID: "test", State: Running, Version: "1.16.1", App: "Firecracker"}, info); diff != "" || err != nil {
		t.Errorf("info (-want +got):\n%s%v", diff, err)
	}
	if m, err := c.Machine(ctx); err != nil || m.VCPUs != 2 {
		t.Errorf("machine: %+v, %v", m, err)
	}
	if b, err := c.Balloon(ctx); err != nil || !b.DeflateOnOOM {
		t.Errorf("balloon: %+v, %v", b, err)
	}
	if s, err := c.BalloonStats(ctx); err != nil || s.ActualMiB != 64 {
		t.Errorf("statistics: %+v, %v", s, err)
	}
	if s, err := c.Hinting(ctx); err != nil || s.Host != 1 || s.Guest != nil {
		t.Errorf("hinting: %+v, %v", s, err)
	}
	if h, err := c.Hotplug(ctx); err != nil || h.TotalMiB != 1024 {
		t.Errorf("hotplug: %+v, %v", h, err)
	}
	if all, err := c.Config(ctx); err != nil || string(all["drives"]) != `["root","overlay"]` {
		t.Errorf("config: %s, %v", all["drives"], err)
	}
	data, err := c.MMDS(ctx)
	var got any
	json.Unmarshal(data, &got)
	if diff := cmp.Diff(map[string]any{"a": map[string]any{"c": 2., "d": 3.}}, got); diff != "" || err != nil {
		t.Errorf("mmds (-want +got):\n%s%v", diff, err)
	}
	if err := c.CtrlAltDel(ctx); err == nil {
		t.Error("the stand-in answers, and should have ended") // as its guest would have
	}
}

// What the process refuses is an error that says so; what it would refuse for its form is never sent.
func TestClientRefused(t *testing.T) {
	c, _ := startStandin(t)
	ctx := t.Context()
	tests := []struct {
		name string
		err  error
		want string
	}{
		{"pause before the boot", c.Pause(ctx), "firecracker: PATCH /vm: status 400: The requested operation is not supported before starting the microVM."},
		{"a snapshot before the boot", c.CreateSnapshot(ctx, SnapshotFiles{State: "s", Memory: "m"}), "unless it is paused"},
		{"boot without a kernel", c.Boot(ctx), "Cannot start microvm without kernel configuration."},
		{"no processors", c.PutMachine(ctx, Machine{MemoryMiB: 1}), "vcpu_count"},
		{"33 processors", c.PutMachine(ctx, Machine{VCPUs: 33, MemoryMiB: 1}), "vcpu_count"},
		{"a kernel that is not there", c.PutBoot(ctx, BootSource{Kernel: "nonesuch"}), "nonesuch: no such file"},
		{"a drive with a hyphen", c.PutDrive(ctx, Drive{ID: "my-disk", Path: rootFile}), "an ID has letters, digits and _"},
		{"a path in an ID", c.PutDrive(ctx, Drive{ID: "../vm", Path: rootFile}), "an ID has letters, digits and _"},
		{"a field that is not known", c.put(ctx, "/vsock", map[string]any{"guest_cid": 3, "uds_path": "v", "color": "red"}), `property "color" is unsupported`},
		{"a field of another type", c.put(ctx, "/balloon", map[string]any{"amount_mib": "1", "deflate_on_oom": true}), "amount_mib"},
		{"another ID in the body", c.put(ctx, "/drives/a", Drive{ID: "b", Path: rootFile}), "does not match the id from the body"},
		{"a path that is not known", c.put(ctx, "/nonesuch", nil), "Invalid request method and/or path: PUT /nonesuch."},
		{"a body that is too large", c.PutMMDS(ctx, strings.Repeat("x", maxBody)), "status 413"},
		{"a command line that is too long", c.PutBoot(ctx, BootSource{Kernel: kernelFile, Args: strings.Repeat("x", 2049)}), "more than 2048"},
	}
	for _, tt := range tests {
		if tt.err == nil || !strings.Contains(tt.err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, tt.err, tt.want)
		}
	}
	var api *APIError
	if err := c.Pause(ctx); !errors.As(err, &api) || api.Status != http.StatusBadRequest || api.Call != "PATCH /vm" {
		t.Errorf("%#v is no APIError", err)
	}
	if err := c.PutLogger(ctx, Logger{Path: logFile}); err != nil {
		t.Error(err)
	}
	if err := c.PutLogger(ctx, Logger{Path: logFile}); err == nil {
		t.Error("a second logger is accepted")
	}
	if err := c.PutMachine(ctx, Machine{VCPUs: 1, MemoryMiB: 1}); err != nil {
		t.Error(err)
	}
	load := SnapshotLoad{State: "state", Memory: MemoryBackend{"File", "memory"}}
	if err := c.LoadSnapshot(ctx, load); err == nil || !strings.Contains(err.Error(), "not allowed after configuring") {
		t.Errorf("a load after the configuration: %v", err)
	}
	if _, err := c.Info(ctx); err == nil {
		t.Error("the process lives on after a load that failed")
	}
}

// A process that is taken over may answer anything.
func TestClientHostileReplies(t *testing.T) {
	for _, tt := range []struct{ name, reply, want string }{
		{"no HTTP", "hello\n", "malformed HTTP"},
		{"a flood", "HTTP/1.1 400 Bad\r\nContent-Length: 4000000\r\n\r\n" + strings.Repeat("x", 4000000), "status 400: xxx"},
		{"no JSON", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nfoo", "is not what the API describes"},
		{"cut off", "HTTP/1.1 200 OK\r\nContent-Length: 30\r\n\r\n{", "unexpected EOF"},
	} {
		l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			conn.Read(make([]byte, 4096))
			fmt.Fprint(conn, tt.reply)
		}()
		c := NewClient(func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", l.Addr().String())
		})
		_, err = c.Info(t.Context())
		if err == nil || !strings.Contains(err.Error(), tt.want) || len(err.Error()) > 1000 {
			t.Errorf("%s: %.200v, want %q", tt.name, err, tt.want)
		}
		c.Close()
		l.Close()
	}
}

func TestSupported(t *testing.T) {
	for version, want := range map[string]bool{
		"1.16.1": true, "1.16.2": true, "1.17.0": true, "2.0.0": true, "v1.16.1": true, "1.17.0-dev": true,
		"1.16.0": false, "1.15.9": false, "0.25.0": false, "": false, "1.16": false, "latest": false, "1.16.99999999999999999999": false,
	} {
		if err := supported(version); (err == nil) != want {
			t.Errorf("%q: %v", version, err)
		}
	}
}

func TestReadOK(t *testing.T) {
	for line, want := range map[string]bool{
		"OK 1073741824\n": true, "OK 1\nagent": true, "": false, "OK 1": false, "NO\n": false, "OK\n": false, strings.Repeat("OK ", 20) + "\n": false,
	} {
		r := strings.NewReader(line)
		err := readOK(r)
		if (err == nil) != want {
			t.Errorf("%q: %v", line, err)
		}
		if rest := line[strings.IndexByte(line, '\n')+1:]; err == nil && r.Len() != len(rest) {
			t.Errorf("%q: %d bytes are left, want %d", line, r.Len(), len(rest))
		}
	}
}

func FuzzReadOK(f *testing.F) {
	f.Add("OK 52\nhello")
	f.Fuzz(func(t *testing.T, s string) {
		r := strings.NewReader(s)
		if err := readOK(r); err == nil && !strings.HasPrefix(s, "OK ") {
			t.Errorf("%q is accepted", s)
		}
	})
}

func FuzzFault(f *testing.F) {
	f.Add([]byte(`{"fault_message":"no"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s := faultOf(b); len(s) > max(300, len(b)) {
			t.Errorf("%d bytes of %d", len(s), len(b))
		}
	})
}
