// Package qemu starts machines as QEMU microVMs: Debian's kernel booted by PVH, a read-only root disk that all
// share, a writable overlay disk each, and a virtio-serial port to the agent. It uses KVM where a probe has booted
// a guest with it, and otherwise software emulation (TCG), which has the same semantics and is slower.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/network"
)

// The accelerators of Config.Accel.
const (
	Auto = "auto" // KVM if the probe boots a guest with it, otherwise TCG
	KVM  = "kvm"  // no machine without it
	TCG  = "tcg"
)

// Image is what a machine boots from; *image.Image has all of it.
type Image struct {
	Kernel string // ELF vmlinux with a PVH entry
	Initrd string // holds the agent, which boots by guest.Boot
	Root   string // ext4, only read
	// Overlay makes a blank ext4 disk of size bytes at path, which does not exist.
	Overlay func(ctx context.Context, path string, size int64) error `json:"-"`
	// Hash identifies the contents of the three files; "": there are no snapshots, and every machine is booted.
	Hash string
}

type diskMaker = func(ctx context.Context, path string, size int64) error

// Warmup is what a machine does before its snapshot is taken: what it has read by then, no clone reads again.
type Warmup struct {
	ID string // names what Run does: a snapshot that was made with another is not used
	// Run has the machine, whose agent has opened its port, to itself. It leaves nothing that clones must not share. Clones begin
	// with a stream where the last one of Dial was: if that is open, their agents do not have to notice another host.
	Run func(ctx context.Context, m vm.VM) error
}

// Config says how machines are made. Image and Journal are required; the zero value of the rest is the default.
type Config struct {
	Image       Image
	Journal     vm.Journal
	Binary      string        // default: qemu-system-x86_64 from PATH
	Accel       string        // default: Auto
	CacheDir    string        // where the verdict on KVM and snapshots are kept; default: tgr in the user's cache folder
	Warmup      Warmup        // before a snapshot; the zero value is nothing
	Memory      int64         // bytes of a machine that asks for none; default 1 GiB
	Disk        int64         // bytes of overlay of a machine that asks for none; default 16 GiB, sparse
	BootTimeout time.Duration // from the process's start to the agent's port; default 2 minutes
	// Network is "" for a machine without a network device, or "user" for QEMU's user-mode network. With "user"
	// a job reaches the internet, and also every service of the host that listens on loopback, as 10.0.2.2,
	// and what the host reaches: choose it for jobs that are trusted.
	Network string
	// Slots, if not nil, gives every machine a network of its own, which vm.Networked opens; Network is "" then. Whoever made them closes them, after the machines.
	Slots *network.Pool
	// Cgroups, if not nil, bounds what a machine takes of the host: its memory and what the emulator needs besides, its
	// processors and half of one for input and output, and threads.
	Cgroups *vm.Cgroups
	// Spare has an emulator started ahead for the next machine that is restored, see Prestart.
	Spare bool
	Log   *slog.Logger // nil: nothing is logged
}

// Provider starts machines. It is safe for concurrent use. Close ends what it has started ahead.
type Provider struct {
	cfg Config

	mu    sync.Mutex
	accel Verdict // once it is known

	tsc     func() int64 // hostTSC, once, and steady
	goldens goldens
	spares  spares
}

var (
	_ vm.Provider = (*Provider)(nil)
	_ vm.Warmer   = (*Provider)(nil)
	_ vm.Adopter  = (*Provider)(nil)
)

// New checks cfg and returns a Provider. It starts nothing: what is missing on the host shows in Start.
func New(cfg Config) (*Provider, error) {
	if cfg.Image.Overlay == nil || cfg.Image.Kernel == "" || cfg.Image.Initrd == "" || cfg.Image.Root == "" {
		return nil, errors.New("qemu: Config.Image is not complete")
	}
	if cfg.Journal.Dir == "" {
		return nil, errors.New("qemu: Config.Journal has no folder")
	}
	switch cfg.Accel {
	case "":
		cfg.Accel = Auto
	case Auto, KVM, TCG:
	default:
		return nil, fmt.Errorf("qemu: accelerator %q: want auto, kvm or tcg", cfg.Accel)
	}
	if cfg.Network != "" && cfg.Network != "user" {
		return nil, fmt.Errorf("qemu: network %q: want nothing or user", cfg.Network)
	}
	if cfg.Network != "" && cfg.Slots != nil {
		return nil, errors.New("qemu: Config has two networks")
	}
	if cfg.Warmup.Run != nil && cfg.Warmup.ID == "" {
		return nil, errors.New("qemu: Config.Warmup has no ID")
	}
	for _, path := range []*string{&cfg.Image.Kernel, &cfg.Image.Initrd, &cfg.Image.Root, &cfg.Journal.Dir} {
		abs, err := filepath.Abs(*path) // QEMU runs in the machine's folder
		if err != nil {
			return nil, fmt.Errorf("qemu: %w", err)
		}
		*path = abs
	}
	if cfg.Binary == "" {
		cfg.Binary = "qemu-system-x86_64"
	}
	if cfg.Memory == 0 {
		cfg.Memory = 1 << 30
	}
	if cfg.Disk == 0 {
		cfg.Disk = 16 << 30
	}
	if cfg.BootTimeout == 0 {
		cfg.BootTimeout = 2 * time.Minute
	}
	if cfg.CacheDir == "" {
		if dir, err := os.UserCacheDir(); err == nil {
			cfg.CacheDir = filepath.Join(dir, "tgr") // without one the verdict is found anew by each Provider
		}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Provider{cfg: cfg, tsc: sync.OnceValue(func() int64 { return steady(cfg.CacheDir, hostTSC()) })}, nil
}

// Start restores a machine from the snapshot that Warm made, if there is one, and otherwise boots it; a restored
// machine may be dialled at once, a booted one when its agent has opened the port. It obeys vm.Provider.
func (p *Provider) Start(ctx context.Context, s vm.Spec) (vm.VM, error) {
	begin := time.Now()
	if ctx.Err() != nil {
		return nil, &vm.BootError{ID: s.ID, Err: context.Cause(ctx)}
	}
	a, err := p.argsFor(ctx, s)
	if err != nil {
		return nil, err
	}
	m, err := p.restoreOrNil(ctx, a, s)
	if m == nil && err == nil {
		m, err = p.boot(ctx, a, s)
	}
	if err != nil {
		return nil, err
	}
	m.boot = time.Since(begin)
	if err := m.remember(); err != nil {
		return nil, errors.Join(&vm.InfraError{Op: "qemu: machine " + s.ID, Err: err}, m.Close())
	}
	verb := "machine booted"
	if m.args.Backing == private {
		verb = "machine restored"
	}
	p.cfg.Log.Info(verb, "vm", s.ID, "isolation", m.isolation, "took", m.boot.Round(time.Millisecond))
	return m, nil
}

// boot boots a machine, with a file of its own as its memory: a snapshot can be taken of it.
func (p *Provider) boot(ctx context.Context, a args, s vm.Spec) (*machine, error) {
	a.Backing = shared
	m, err := p.newMachine(ctx, a, s, p.cfg.Image.Overlay)
	if m == nil {
		return nil, err
	}
	if err == nil {
		m.memory, err = a.memoryFile()
	}
	if err == nil {
		err = m.run(ctx, a, m.memory)
	}
	if err != nil {
		return nil, errors.Join(m.startError(ctx, err), m.Close())
	}
	began := time.Now()
	if err := m.emulator().awaitAgent(ctx, p.cfg.BootTimeout); err != nil {
		err = m.startError(ctx, err)
		p.cfg.Log.Warn("machine did not boot", "vm", s.ID, "error", err, "console", m.console.String())
		return nil, errors.Join(err, m.Close())
	}
	m.phase("boot", began)
	return m, nil
}

// run starts the machine's first emulator.
func (m *machine) run(ctx context.Context, a args, inherit ...*os.File) error {
	e, err := m.launch(ctx, a, inherit)
	if e != nil {
		m.install(e)
	}
	return err
}

// argsFor settles what the machine's command line depends on.
func (p *Provider) argsFor(ctx context.Context, s vm.Spec) (args, error) {
	if s.VCPUs < 0 || s.VCPUs > 64 || s.Memory < 0 || s.Disk < 0 {
		return args{}, &vm.InfraError{Op: "qemu: machine " + s.ID, Err: fmt.Errorf("%d processors, %d bytes of memory, %d of disk: out of range", s.VCPUs, s.Memory, s.Disk)}
	}
	v, err := p.Accelerator(ctx)
	if err != nil {
		return args{}, err
	}
	for _, file := range []string{p.cfg.Image.Kernel, p.cfg.Image.Initrd, p.cfg.Image.Root} {
		if _, err := os.Stat(file); err != nil {
			return args{}, &vm.InfraError{Op: "qemu: image", Err: fmt.Errorf("%w: run `tgr image build`", err)}
		}
	}
	a := args{
		ID: s.ID, KVM: v.KVM, Image: p.cfg.Image, Overlay: overlayFile, Network: p.cfg.Network,
		VCPUs: max(s.VCPUs, 1), Memory: orDefault(s.Memory, p.cfg.Memory), Root: os.Geteuid() == 0, Listen: true,
	}
	if !v.KVM {
		a.TSC = p.tsc()
	}
	if p.cfg.Slots != nil {
		a.Network = slotNet
	}
	return a, nil
}

// connect gives a machine its network slot, if there are any. The slot lets nothing through yet.
func (p *Provider) connect(ctx context.Context, m *machine) (err error) {
	if p.cfg.Slots == nil {
		return nil
	}
	if m.slot, err = p.cfg.Slots.Acquire(ctx, m.rec.ID(), vm.Egress{}); err != nil {
		return err
	}
	return m.rec.AddNeed(m.slot.Needs()...)
}

func orDefault(v, def int64) int64 {
	if v == 0 {
		return def
	}
	return v
}

// lookBinary finds QEMU and says which package has it.
func (p *Provider) lookBinary() (string, error) {
	path, err := exec.LookPath(p.cfg.Binary)
	if err != nil {
		return "", &vm.InfraError{Op: "qemu", Err: fmt.Errorf("%w: install the Debian package qemu-system-x86", err)}
	}
	return filepath.Abs(path)
}
