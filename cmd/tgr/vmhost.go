package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/terraphim/tgr/dispatch"
	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/image"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vm/firecracker"
	"github.com/terraphim/tgr/vm/network"
	"github.com/terraphim/tgr/vm/qemu"
)

// openVMs gives every job a virtual machine of the kind that its labels ask for.
func openVMs(ctx context.Context, c machineConfig, journal vm.Journal, log *slog.Logger) (*machines, error) {
	if c.network == "user" {
		log.Warn("jobs have QEMU's user network: they reach the internet, and services on this host's loopback")
	}
	h := &vmHost{c: c, journal: journal, log: log, images: map[string]*vmImage{}}
	im, err := h.image(ctx, c.image)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w; tgr doctor shows what else is missing", err), h.close())
	}
	fleet := &dispatch.Fleet{Labels: c.labels, Open: h.open, Engine: h.engine(ctx)}
	if c.pool > 0 {
		// Machines of the default kind begin to wait now, those of another when the first of them is wanted.
		if err := fleet.Ready(ctx, dispatch.Kind{}); err != nil {
			return nil, errors.Join(err, h.close())
		}
	}
	m := &machines{Machines: fleet, labels: c.labels, egress: c.egress, most: capacity(c.size.Memory), close: h.close, ready: im.works}
	if w, ok := im.backend.(vm.Warmer); ok && !c.cold {
		m.warm = func(ctx context.Context) error { return w.Warm(ctx, c.size) }
	}
	return m, nil
}

// vmHost has what virtual machines of all kinds share. It is safe for concurrent use.
type vmHost struct {
	c       machineConfig
	journal vm.Journal
	log     *slog.Logger
	slots   *network.Pool // nil: machines have no network of their own

	mu     sync.Mutex
	images map[string]*vmImage
	pools  []*vm.Pool
}

// vmImage is an image with what boots it.
type vmImage struct {
	image   *image.Image
	backend vm.Provider
	works   func(context.Context) error // nil where machines can be made
}

// open returns the machines of a kind.
func (h *vmHost) open(ctx context.Context, k dispatch.Kind) (dispatch.Machines, error) {
	im, err := h.image(ctx, cmp.Or(k.Image, h.c.image))
	if err != nil {
		return nil, err
	}
	size := h.c.size
	size.VCPUs, size.Memory, size.Disk = cmp.Or(k.CPUs, size.VCPUs), cmp.Or(k.Memory, size.Memory), cmp.Or(k.Disk, size.Disk)
	place := placeIn(im.image.Manifest.Root.Config)
	local := &dispatch.Local{Provider: im.backend, Size: size, Log: h.log, Place: place}
	if h.c.isolation == "container" {
		local.Shared, local.Place = true, contained(place)
	}
	if h.c.pool == 0 {
		return local, nil
	}
	greet := answers
	if !local.Shared {
		local.Greeter = &dispatch.Greeter{}
		if im.image.Manifest.Root.From == "" { // of another image nobody knows what it has
			local.Greeter.Exercise = exercise
		}
		greet = local.Greeter.Greet
	}
	pool, err := vm.NewPool(vm.PoolConfig{Provider: im.backend, Size: size, Greet: greet, Budget: h.budget(k), Log: h.log})
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	h.pools = append(h.pools, pool)
	h.mu.Unlock()
	local.Provider = pool
	return local, nil
}

// answers returns when the agent of a machine has answered.
func answers(ctx context.Context, m vm.VM) error {
	c, err := guest.Dial(ctx, m.Dial)
	if err != nil {
		return err
	}
	return c.Close()
}

// engine is the image that has a container engine, if it was built; else jobs with containers say how to build it.
func (h *vmHost) engine(ctx context.Context) string {
	im, err := (&image.Store{Log: h.log}).Open(ctx, fullImage)
	if err != nil {
		return ""
	}
	im.Close()
	return fullImage
}

// budget is the part of the pools' memory that a kind gets: with others beside it, the default kind has half of it,
// and they share the rest.
func (h *vmHost) budget(k dispatch.Kind) int64 {
	others := map[dispatch.Kind]bool{}
	for _, kind := range h.c.labels {
		others[kind] = true
	}
	delete(others, dispatch.Kind{})
	switch {
	case len(others) == 0:
		return h.c.pool
	case k == dispatch.Kind{}:
		return h.c.pool / 2
	default:
		return h.c.pool / 2 / int64(len(others))
	}
}

// image opens the image of that name with its provider, unless that has been done.
func (h *vmHost) image(ctx context.Context, name string) (*vmImage, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if im := h.images[name]; im != nil {
		return im, nil
	}
	if len(h.images) == 0 && h.slots == nil {
		var err error
		if h.slots, err = openSlots(h.c, h.journal, h.log); err != nil {
			return nil, err
		}
	}
	images := &image.Store{Log: h.log}
	im, err := images.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	v := &vmImage{image: im}
	if err := h.boot(ctx, v); err != nil {
		im.Close()
		return nil, err
	}
	h.images[name] = v
	return v, nil
}

// boot settles what boots the machines of an image: what was asked for, or the best that works.
func (h *vmHost) boot(ctx context.Context, v *vmImage) error {
	switch h.c.isolation {
	case "container":
		return h.container(v)
	case "firecracker":
		return h.firecracker(ctx, v)
	case "auto":
		err := h.firecracker(ctx, v)
		if err == nil {
			return nil
		}
		if !errors.Is(err, firecracker.ErrAbsent) {
			h.log.Info("machines are not Firecracker's", "reason", err)
		}
	}
	return h.qemu(ctx, v)
}

// qemu boots machines by QEMU, with KVM or without.
func (h *vmHost) qemu(ctx context.Context, v *vmImage) error {
	im := v.image
	cfg := qemu.Config{
		Image:   qemu.Image{Kernel: im.Kernel, Initrd: im.Initrd, Root: im.Root, Overlay: im.CloneOverlay, Hash: im.Hash()},
		Journal: h.journal, Log: h.log, Slots: h.slots, Warmup: qemu.Warmup{ID: im.Warmup(), Run: warmUp(im.Warmup())},
		Spare: h.c.pool > 0,
	}
	if h.c.cold {
		cfg.Image.Hash = ""
	}
	cfg.Cgroups = limitsOf(h.log)
	if h.c.network == "user" {
		cfg.Network = "user"
	}
	p, err := qemu.New(cfg)
	if err != nil {
		return err
	}
	verdict, err := p.Accelerator(ctx)
	if err != nil {
		return err
	}
	h.log.Info("machines", "isolation", "qemu", "accelerator", verdict.String(), "image", im.Name, "kernel", im.Release)
	v.backend, v.works = p, func(ctx context.Context) error {
		_, err := p.Accelerator(ctx)
		return err
	}
	return nil
}

// firecracker boots machines by Firecracker, if a guest boots with it.
func (h *vmHost) firecracker(ctx context.Context, v *vmImage) error {
	cfg := firecrackerConfig(v.image, h.journal, h.log, h.c.cold)
	cfg.Slots = h.slots
	p, err := firecracker.New(cfg)
	if err != nil {
		return err
	}
	v.backend, v.works = p, func(ctx context.Context) error {
		verdict, err := p.Probe(ctx)
		if err == nil && !verdict.OK {
			err = &vm.InfraError{Op: "firecracker", Err: errors.New(verdict.Reason)}
		}
		return err
	}
	if err := v.works(ctx); err != nil {
		return err
	}
	h.log.Info("machines", "isolation", "firecracker", "image", v.image.Name, "kernel", v.image.Release)
	return nil
}

// firecrackerConfig is how machines of an image are made by Firecracker.
func firecrackerConfig(im *image.Image, journal vm.Journal, log *slog.Logger, cold bool) firecracker.Config {
	cfg := firecracker.Config{
		Image:   firecracker.Image{Kernel: im.Kernel, Initrd: im.Initrd, Root: im.Root, Overlay: im.CloneOverlay, Hash: im.Hash()},
		Journal: journal, Log: log, Warmup: firecracker.Warmup{ID: im.Warmup(), Run: warmUpClosed(im.Warmup())},
	}
	if dir, err := os.UserCacheDir(); err == nil && !cold {
		cfg.CacheDir = filepath.Join(dir, "tgr") // without one the probe is made each time, and every machine is booted
	}
	return cfg
}

// close frees the machines that wait, and lets go of the images.
func (h *vmHost) close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for _, p := range h.pools {
		errs = append(errs, p.Close())
	}
	for _, im := range h.images {
		if c, ok := im.backend.(io.Closer); ok {
			errs = append(errs, c.Close())
		}
		errs = append(errs, im.image.Close())
	}
	if h.slots != nil {
		errs = append(errs, h.slots.Close())
	}
	h.pools, h.images = nil, map[string]*vmImage{}
	return errors.Join(errs...)
}

// capacity is how many machines of so much memory the host has room for now, at least one.
func capacity(memory int64) int {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 1
	}
	for line := range strings.Lines(string(data)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); n == 1 {
			return int(max(1, kib<<10/memory))
		}
	}
	return 1
}

// fullImage is the name of the image with a container engine that jobs with containers get without asking.
const fullImage = "full"

const imagePath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// placeIn is imagePlace with the environment that an OCI image asks for; nil: it is not made of one.
func placeIn(c *image.ImageConfig) func(vm.VM) dispatch.Place {
	return func(m vm.VM) dispatch.Place {
		p := imagePlace(m)
		if c != nil {
			delete(p.Env, "ImageOS")
			delete(p.Env, "SHELL") // it may have no bash
			c.SetEnv(p.Env)
		}
		return p
	}
}

// imagePlace is where our image has things; the folders are GitHub's own.
func imagePlace(vm.VM) dispatch.Place {
	const node20, node24 = "/opt/node20/bin/node", "/opt/node24/bin/node"
	return dispatch.Place{
		Nodes:   map[string]string{"node12": node20, "node16": node20, "node20": node20, "node24": node24},
		Engines: []string{"podman", "docker"},
		// Without SHELL each bash asks all that may know of users for the one that it runs as: a tenth of what the first costs.
		Env: map[string]string{"PATH": imagePath, "LANG": "C.UTF-8", "SHELL": "/bin/bash", "USER": "runner",
			"ImageOS": "debian12", "DEBIAN_FRONTEND": "noninteractive"},
		User: "runner",
	}
}

// limitsOf bounds what machines take of the host, where that is possible.
func limitsOf(log *slog.Logger) *vm.Cgroups {
	c, err := vm.FindCgroups()
	if err != nil {
		log.Warn("machines are NOT LIMITED by this host in every respect: one that breaks out of its guest may take more", "error", err)
	}
	return c
}
