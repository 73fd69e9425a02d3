// Package firecracker starts machines as Firecracker microVMs: one jailed process each, spoken to through its API
// socket, with a read-only root disk that all share, a writable overlay disk each, and a vsock device to the agent.
//
// No guest boots on the hosts that this was written on, so the package is tested against a stand-in that holds every
// call to Firecracker's own description of its API. `make test-firecracker` runs the same tests on the real one.
package firecracker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/network"
)

// Image is what a machine boots from; *image.Image has all of it. The three files are readable for all users: each
// machine has a user of its own.
type Image struct {
	Kernel string // ELF vmlinux
	Initrd string // holds the agent, which boots by guest.Boot
	Root   string // ext4, only read
	// Overlay makes a blank ext4 disk of size bytes at path, which does not exist.
	Overlay func(ctx context.Context, path string, size int64) error
	// Hash identifies the contents of the three files; "": there are no golden snapshots, and every machine is booted.
	Hash string
}

// Warmup is what a machine does before its golden snapshot is taken.
type Warmup struct {
	ID string // names what Run does: a snapshot that was made with another is not used
	// Run has the machine to itself. It leaves nothing that clones must not share.
	Run func(ctx context.Context, m vm.VM) error
}

// Config says how machines are made. Image and Journal are required; the zero value of the rest is the default.
type Config struct {
	Image   Image
	Journal vm.Journal
	Binary  string // default: firecracker from PATH. A release build: others have no seccomp filters
	// Jailer is the program that confines a process: default jailer from PATH, for root; None, and for others, no jail.
	Jailer string
	// UIDs are users that nobody else has, the first and how many; each machine has one of them. Default 210000 and 10000.
	UIDs [2]int
	// Parent is the cgroup that machines are below, relative to the hierarchy; "": the jailer makes none.
	Parent    string
	CacheDir  string   // where golden snapshots and the verdict of the probe are kept; "": nowhere
	Warmup    Warmup   // before a golden snapshot; the zero value is nothing
	Memory    int64    // bytes of a machine that asks for none; default 1 GiB
	Disk      int64    // bytes of overlay of a machine that asks for none; default 16 GiB, sparse
	DiskLimit *Limiter // of the overlay; nil: none
	// Slots are the networks of machines; nil: machines have no network device.
	Slots       *network.Pool
	BootTimeout time.Duration // from the process's start to the agent's answer; default 1 minute
	Log         *slog.Logger  // nil: nothing is logged
}

// None is a Config.Jailer: processes are not confined, and run as the user who runs the server.
const None = "none"

// Provider starts machines. It is safe for concurrent use.
type Provider struct {
	cfg     Config
	binary  string
	jailer  string // "": there is none
	goldens goldens
}

var (
	_ vm.Provider = (*Provider)(nil)
	_ vm.Warmer   = (*Provider)(nil)
	_ vm.Adopter  = (*Provider)(nil)
)

// ErrAbsent is New's where Firecracker is not installed.
var ErrAbsent = errors.New("firecracker is not installed")

// New checks cfg, finds the programs and returns a Provider. It starts nothing.
func New(cfg Config) (*Provider, error) {
	if cfg.Image.Overlay == nil || cfg.Image.Kernel == "" || cfg.Image.Initrd == "" || cfg.Image.Root == "" {
		return nil, errors.New("firecracker: Config.Image is not complete")
	}
	if cfg.Journal.Dir == "" {
		return nil, errors.New("firecracker: Config.Journal has no folder")
	}
	if cfg.Warmup.Run != nil && cfg.Warmup.ID == "" {
		return nil, errors.New("firecracker: Config.Warmup has no ID")
	}
	for _, path := range []*string{&cfg.Image.Kernel, &cfg.Image.Initrd, &cfg.Image.Root, &cfg.Journal.Dir} {
		abs, err := filepath.Abs(*path)
		if err != nil {
			return nil, fmt.Errorf("firecracker: %w", err)
		}
		*path = abs
	}
	if cfg.UIDs == [2]int{} {
		cfg.UIDs = [2]int{210000, 10000}
	}
	if cfg.UIDs[0] < 1 || cfg.UIDs[1] < 1 {
		return nil, fmt.Errorf("firecracker: users %d to %d: want some, and not root", cfg.UIDs[0], cfg.UIDs[0]+cfg.UIDs[1]-1)
	}
	if cfg.Memory == 0 {
		cfg.Memory = 1 << 30
	}
	if cfg.Disk == 0 {
		cfg.Disk = 16 << 30
	}
	if cfg.BootTimeout == 0 {
		cfg.BootTimeout = time.Minute
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	p := &Provider{cfg: cfg}
	return p, p.findPrograms()
}

// findPrograms settles which programs are run.
func (p *Provider) findPrograms() error {
	find := func(given, name string) (string, error) {
		if given == "" {
			given = name
		}
		path, err := exec.LookPath(given)
		if err != nil {
			return "", fmt.Errorf("%w: %w", ErrAbsent, err)
		}
		return filepath.Abs(path)
	}
	var err error
	if p.binary, err = find(p.cfg.Binary, "firecracker"); err != nil {
		return err
	}
	switch {
	case p.cfg.Jailer == None:
		return nil
	case os.Geteuid() != 0 && p.cfg.Jailer != "":
		return errors.New("firecracker: the jailer has to be started by root")
	case os.Geteuid() != 0:
		return nil
	}
	p.jailer, err = find(p.cfg.Jailer, "jailer")
	return err
}

// isolation is what Info says of machines.
func (p *Provider) isolation() string {
	if p.jailer == "" {
		return "firecracker (no jailer)"
	}
	return "firecracker"
}

// size is what s asks for, or an error if no machine can have it.
func (p *Provider) size(s vm.Spec) (vm.Spec, error) {
	if s.VCPUs < 0 || s.VCPUs > 32 || s.Memory < 0 || s.Disk < 0 {
		return s, &vm.InfraError{Op: "firecracker: machine " + s.ID, Err: fmt.Errorf(
			"%d processors, %d bytes of memory, %d of disk: out of range", s.VCPUs, s.Memory, s.Disk)}
	}
	s.VCPUs = max(s.VCPUs, 1)
	if s.Memory == 0 {
		s.Memory = p.cfg.Memory
	}
	if s.Disk == 0 {
		s.Disk = p.cfg.Disk
	}
	return s, nil
}

// Start restores a machine from the golden snapshot that Warm made, if there is one, and otherwise boots it; either
// way its agent accepts connections. It obeys vm.Provider.
func (p *Provider) Start(ctx context.Context, s vm.Spec) (vm.VM, error) {
	begin := time.Now()
	if ctx.Err() != nil {
		return nil, &vm.BootError{ID: s.ID, Err: context.Cause(ctx)}
	}
	s, err := p.size(s)
	if err != nil {
		return nil, err
	}
	m, err := p.restoreOrNil(ctx, s)
	if m == nil && err == nil {
		m, err = p.start(ctx, s, p.bootPlan(s))
	}
	if err != nil {
		return nil, err
	}
	m.boot = time.Since(begin)
	p.cfg.Log.Info("machine started", "vm", s.ID, "isolation", m.isolation, "restored", m.restored, "took", m.boot.Round(time.Millisecond))
	return m, nil
}

// plan is what a new process is made to be: a machine that boots, or one from a snapshot.
type plan struct {
	files func(ctx context.Context, j *jail) error   // puts the files into the jail
	run   func(ctx context.Context, c *Client) error // configures the machine and lets it go
	// await returns when the machine is ready; nil: when its agent accepts connections.
	await func(ctx context.Context, proc *process) error
}

// start makes a machine.
func (p *Provider) start(ctx context.Context, s vm.Spec, do plan) (*machine, error) {
	rec, err := p.cfg.Journal.Open(s.ID, provider)
	if err != nil {
		return nil, &vm.InfraError{Op: "firecracker: journal", Err: err}
	}
	m := newMachine(p, s, rec)
	if err := m.launch(ctx, do); err != nil {
		err = m.startError(ctx, err)
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// provider is our name in the journal.
const provider = "firecracker"

// Names inside a machine's jail: relative, so that they are the same with a jail and without, and in every clone.
const (
	kernelFile  = "kernel"
	initrdFile  = "initrd"
	rootFile    = "root.ext4"
	overlayFile = "overlay.ext4"
	stateFile   = "state"
	memoryFile  = "memory"
	metricsFile = "metrics"
	logFile     = "log"
	apiSocket   = "api.sock"
	agentSocket = "vsock.sock"
)

const (
	guestCID  = 3
	agentPort = 52 // the vsock port that the agent listens on
)

// cmdline is the kernel's command line. Firecracker adds the root device, which the agent's initramfs does not look at.
func (p *Provider) cmdline() string {
	words := fmt.Sprintf("console=ttyS0 quiet reboot=k panic=1 audit=0 random.trust_cpu=on cryptomgr.notests swiotlb=noforce "+
		"8250.nr_uarts=1 i8042.noaux i8042.nomux i8042.nopnp i8042.dumbkbd tgr.disks=vda,vdb tgr.vsock=%d", agentPort)
	if p.cfg.Slots != nil { // the same for every machine: what is in a snapshot of one holds for all
		words += fmt.Sprintf(" tgr.net=%s,%s,%s", network.GuestPrefix(), network.Gateway(), network.Gateway())
	}
	return words
}

// bootPlan boots a machine.
func (p *Provider) bootPlan(s vm.Spec) plan {
	return plan{
		files: func(ctx context.Context, j *jail) error {
			for name, path := range map[string]string{kernelFile: p.cfg.Image.Kernel, initrdFile: p.cfg.Image.Initrd, rootFile: p.cfg.Image.Root} {
				if err := j.link(ctx, path, name); err != nil {
					return err
				}
			}
			if err := p.cfg.Image.Overlay(ctx, j.path(overlayFile), s.Disk); err != nil {
				return err
			}
			return errors.Join(j.own(overlayFile), j.empty(metricsFile), j.empty(logFile))
		},
		run: func(ctx context.Context, c *Client) error { return p.boot(ctx, c, s) },
	}
}

// boot configures a machine and starts its processors.
func (p *Provider) boot(ctx context.Context, c *Client, s vm.Spec) error {
	const mib = 1 << 20
	for _, call := range []func() error{
		func() error { return c.PutLogger(ctx, Logger{Path: logFile, Level: "Warning", ShowLevel: true}) },
		func() error { return c.PutMetrics(ctx, metricsFile) },
		func() error {
			return c.PutMachine(ctx, Machine{VCPUs: s.VCPUs, MemoryMiB: (s.Memory + mib - 1) / mib})
		},
		func() error {
			return c.PutBoot(ctx, BootSource{Kernel: kernelFile, Initrd: initrdFile, Args: p.cmdline()})
		},
		func() error { return c.PutDrive(ctx, Drive{ID: "root", Root: true, Path: rootFile, ReadOnly: true}) },
		func() error {
			// The disk does not outlive the machine: nothing is ever flushed to the host's disk for it.
			return c.PutDrive(ctx, Drive{ID: "overlay", Path: overlayFile, Cache: "Unsafe", Limiter: p.cfg.DiskLimit})
		},
		func() error {
			if p.cfg.Slots == nil {
				return nil
			}
			return c.PutNetwork(ctx, Network{ID: "eth0", Tap: network.TapName, MAC: network.GuestMAC})
		},
		func() error { return c.PutVsock(ctx, Vsock{CID: guestCID, Path: agentSocket}) },
		func() error { return c.PutEntropy(ctx, nil) },
		func() error { return c.PutBalloon(ctx, Balloon{DeflateOnOOM: true}) },
		func() error { return c.Boot(ctx) },
	} {
		if err := call(); err != nil {
			return err
		}
	}
	return nil
}
