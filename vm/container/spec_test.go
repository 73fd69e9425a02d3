package container

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/terraphim/tgr/vm"
)

// TestBundle holds what the runtime is told to what containers here are said to be: it needs neither root nor a runtime.
func TestBundle(t *testing.T) {
	p := &Provider{cfg: Config{IDs: [2]int{300000, 65536}, PIDs: 100}}
	for _, own := range []bool{true, false} {
		b, err := p.bundle(vm.Spec{ID: strings.Repeat("x", 64), VCPUs: 2, Memory: 1 << 30}, "/tgr/x", own)
		if err != nil {
			t.Fatal(err)
		}
		for _, kind := range []specs.LinuxNamespaceType{specs.UserNamespace, specs.PIDNamespace, specs.MountNamespace, specs.IPCNamespace,
			specs.UTSNamespace, specs.CgroupNamespace} {
			if !slices.Contains(b.Linux.Namespaces, specs.LinuxNamespace{Type: kind}) { // of its own: without a path
				t.Errorf("no %s namespace", kind)
			}
		}
		if got := slices.Contains(b.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace}); got != own {
			t.Errorf("a network namespace of the runtime's making: %v, want %v", got, own)
		}
		if id := b.Linux.UIDMappings; len(id) != 1 || id[0].ContainerID != 0 || id[0].HostID != 300000 || id[0].Size != 65536 {
			t.Errorf("users: %+v", id)
		}
		for _, set := range [][]string{b.Process.Capabilities.Bounding, b.Process.Capabilities.Effective, b.Process.Capabilities.Permitted} {
			for _, c := range []string{"ADMIN", "SYS_PTRACE", "SYS_MODULE", "SYS_RAWIO", "SYS_BOOT", "SYS_TIME", "MKNOD", "NET_RAW", "BPF", "PERFMON", "SYSLOG", "DAC_READ_SEARCH"} {
				if slices.ContainsFunc(set, func(s string) bool { return strings.Contains(s, c) }) {
					t.Errorf("capabilities %v have %s", set, c)
				}
			}
		}
		if !b.Process.NoNewPrivileges || len(b.Process.Capabilities.Ambient) > 0 || len(b.Process.Capabilities.Inheritable) > 0 {
			t.Errorf("privileges may be gained: %+v", b.Process)
		}
		r := b.Linux.Resources
		if *r.Memory.Limit != 1<<30 || *r.Memory.Swap != 1<<30 || *r.CPU.Quota != 200_000 || *r.CPU.Period != 100_000 || *r.Pids.Limit != 100 {
			t.Errorf("limits: memory %+v, processors %+v, processes %+v", *r.Memory, *r.CPU, *r.Pids)
		}
		if d := r.Devices; len(d) != 1 || d[0].Allow || d[0].Access != "rwm" || d[0].Type != "" {
			t.Errorf("devices: %+v, want none", d)
		}
		if len(b.Hostname) != 63 {
			t.Errorf("a host name of %d bytes", len(b.Hostname))
		}
		checkMounts(t, b.Mounts)
		checkSeccomp(t, b.Linux.Seccomp)
	}
}

// checkMounts wants no mount of the host but the agent and sysfs, which is only read as control groups are.
func checkMounts(t *testing.T, mounts []specs.Mount) {
	t.Helper()
	for _, m := range mounts {
		if !slices.Contains(m.Options, "nosuid") {
			t.Errorf("%s may hold programs that gain privileges: %v", m.Destination, m.Options)
		}
		if strings.HasPrefix(m.Destination, "/sys") && !slices.Contains(m.Options, "ro") {
			t.Errorf("%s may be written: %v", m.Destination, m.Options)
		}
		if m.Type == "bind" && m.Source != stageExec && m.Source != stageSys {
			t.Errorf("%s of the host is at %s", m.Source, m.Destination)
		}
	}
}

// checkSeccomp wants the calls refused that reach deep into the kernel, whatever else is let through.
func checkSeccomp(t *testing.T, s *specs.LinuxSeccomp) {
	t.Helper()
	if s == nil || s.DefaultAction != specs.ActErrno {
		t.Fatalf("what is not known is not refused: %+v", s)
	}
	for _, name := range []string{"mount", "umount2", "init_module", "finit_module", "kexec_load", "bpf", "perf_event_open", "keyctl", "userfaultfd", "setns", "open_by_handle_at", "reboot", "swapon", "io_uring_setup"} {
		for _, rule := range s.Syscalls {
			if rule.Action == specs.ActAllow && slices.Contains(rule.Names, name) {
				t.Errorf("%s is let through", name)
			}
		}
	}
}

// TestStartEnds has a runtime that never starts anything: who asked gives up, and nothing stays.
func TestStartEnds(t *testing.T) {
	cfg := config(t)
	cfg.Runtime = filepath.Join(t.TempDir(), "runc")
	started := filepath.Join(t.TempDir(), "started")
	if err := os.WriteFile(cfg.Runtime, []byte("#!/bin/sh\necho $$ > "+started+"\nexec sleep 1000\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	p := open(t, cfg)
	why := errors.New("the job was cancelled")
	ctx, cancel := context.WithCancelCause(t.Context())
	go func() {
		for t.Context().Err() == nil {
			if b, err := os.ReadFile(started); err == nil && len(b) > 0 {
				break
			}
			time.Sleep(time.Millisecond)
		}
		cancel(why)
	}()
	_, err := p.Start(ctx, vm.Spec{ID: "never"})
	var boot *vm.BootError
	if !errors.As(err, &boot) || !errors.Is(err, why) {
		t.Errorf("got %v, want a *vm.BootError of %q", err, why)
	}
	pid, _ := os.ReadFile(started)
	if _, err := os.Stat("/proc/" + strings.TrimSpace(string(pid))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the runtime, process %s, is still there: %v", pid, err)
	}
	if left, err := cfg.Journal.List(); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	for _, s := range []vm.Spec{{ID: "cpus", VCPUs: -1}, {ID: "memory", Memory: -1}, {ID: "disk", Disk: -1}} {
		var infra *vm.InfraError
		if _, err := p.Start(t.Context(), s); !errors.As(err, &infra) || !strings.Contains(err.Error(), "out of range") {
			t.Errorf("%+v: %v", s, err)
		}
	}
}
