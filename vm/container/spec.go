package container

import (
	"path/filepath"
	"slices"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/terraphim/tgr/vm"
)

// capabilities are what root in a machine may do, to what is the machine's own: package managers and builds change
// owners, become other users and change roots. There is none that the host's kernel takes for more than that.
func capabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_NET_BIND_SERVICE",
		"CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
	}
}

// bundle is the runtime's description of a machine: with a network namespace of its own, or in the one that the runtime
// is started in.
//
// https://github.com/opencontainers/runtime-spec/blob/v1.3.0/config-linux.md
func (p *Provider) bundle(s vm.Spec, cgroup string, ownNetwork bool) (*specs.Spec, error) {
	caps := capabilities()
	adjust := 500 // of the host's processes, a machine's go first
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return nil, err
	}
	most := min(files.Max, 65536) // root in a machine cannot raise it
	b := &specs.Spec{
		Version:  "1.0.2", // what Debian 12's runtime knows
		Root:     &specs.Root{Path: stageRoot},
		Hostname: hostname(s.ID),
		Mounts:   mounts(ownNetwork),
		Process: &specs.Process{
			Args: []string{agentPath, "-fd", "3"}, Cwd: "/",
			Env:          []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "container=tgr"},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: most, Hard: most}, {Type: "RLIMIT_CORE"}},
			OOMScoreAdj:  &adjust, NoNewPrivileges: true,
		},
		Linux: p.linux(s, cgroup, ownNetwork),
	}
	var err error
	if b.Linux.Seccomp, err = seccomp.GetDefaultProfile(b); err != nil {
		return nil, err
	}
	// No program is made for x32, and the kernel's architecture without it is a third less for the runtime to compile: its
	// system calls are not refused, but end who makes them.
	b.Linux.Seccomp.Architectures = slices.DeleteFunc(b.Linux.Seccomp.Architectures, func(a specs.Arch) bool { return a == specs.ArchX32 })
	return b, nil
}

// linux is the part of the description that is Linux's.
func (p *Provider) linux(s vm.Spec, cgroup string, ownNetwork bool) *specs.Linux {
	namespaces := []specs.LinuxNamespace{
		{Type: specs.UserNamespace}, {Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace},
		{Type: specs.UTSNamespace}, {Type: specs.CgroupNamespace},
	}
	if ownNetwork { // else it is the one that the runtime is in
		namespaces = append(namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	}
	mapping := []specs.LinuxIDMapping{{ContainerID: 0, HostID: uint32(p.cfg.IDs[0]), Size: uint32(p.cfg.IDs[1])}}
	period, quota, pids := uint64(100_000), int64(s.VCPUs)*100_000, p.cfg.PIDs
	return &specs.Linux{
		UIDMappings: mapping, GIDMappings: mapping, CgroupsPath: cgroup,
		Namespaces: namespaces,
		Resources: &specs.LinuxResources{
			Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
			Memory:  &specs.LinuxMemory{Limit: &s.Memory, Swap: &s.Memory}, // of both together: there is no swap
			CPU:     &specs.LinuxCPU{Period: &period, Quota: &quota},
			Pids:    &specs.LinuxPids{Limit: &pids},
		},
		MaskedPaths: []string{"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
			"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"},
		ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
	}
}

// agentPath is where the agent is in a machine.
const agentPath = "/dev/tgr-guest"

func mounts(ownNetwork bool) []specs.Mount {
	sys := specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}}
	if !ownNetwork {
		sys.Type, sys.Source, sys.Options = "bind", stageSys, append(sys.Options, "bind")
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "nodev", "mode=1777", "size=64m"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		sys,
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
		{Destination: "/run", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "mode=755", "size=65536k"}},
		{Destination: agentPath, Type: "bind", Source: stageExec, Options: []string{"bind", "ro", "nosuid", "nodev"}},
	}
}

// hostname is a machine's name as its processes see it.
func hostname(id string) string { return id[:min(len(id), 63)] }

// Names in a machine's folder, which is the runtime's bundle.
const (
	bundleFile = "config.json" // the runtime's own name
	diskFile   = "overlay.ext4"
	pidFile    = "pid"
	socketFile = "agent.sock"
	stateDir   = "runtime"
)

func (p *Provider) argv(rec *vm.Record, id string) []string {
	dir := rec.Dir()
	return []string{p.runtime, "--root", filepath.Join(dir, stateDir), "run", "--bundle", dir,
		"--pid-file", filepath.Join(dir, pidFile), "--preserve-fds", "1", id}
}
