package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/dispatch"
	"github.com/terraphim/tgr/vm"
	"github.com/terraphim/tgr/vmapi"
)

func newVMDCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "vmd", Short: "Serve this host's machines over the VM management API",
		Long: `Serve this host's machines over the VM management API, which knows the calls of fcctl-web and more:
docs/vm-api.md. Every call but /health needs a token; tgr vmd token issues one.

With FIRECRACKER_API_URL set to its address, and FIRECRACKER_AUTH_TOKEN to a token, tgr serve and tgr run run their
jobs on its machines.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(cmd.Flags())
			if err != nil {
				return err
			}
			log, err := newLogger(cmd.ErrOrStderr(), c)
			if err != nil {
				return err
			}
			return ours(serveVMs(cmd.Context(), c, log))
		},
	}
	configFlags(cmd, "vmd-listen", "vmd-max-vms", "data-dir", "isolation", "image", "labels", "vm-memory", "vm-cpus", "vm-disk", "vm-pool", "vm-network", "log-level", "log-format")
	cmd.AddCommand(newVMDTokenCmd())
	return cmd
}

func newVMDTokenCmd() *cobra.Command {
	var user string
	var good time.Duration
	cmd := &cobra.Command{
		Use: "token", Short: "Issue a token for the VM management API, FIRECRACKER_AUTH_TOKEN",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := loadConfig(cmd.Flags())
			if err != nil {
				return err
			}
			if good <= 0 {
				return usagef("--for is %v: a token has to be good for some time", good)
			}
			key, err := vmdKey(c)
			if err != nil {
				return ours(err)
			}
			token, err := vmapi.NewToken(key, user, good)
			if err != nil {
				return usageError{err}
			}
			fmt.Fprintln(cmd.OutOrStdout(), token)
			return nil
		},
	}
	configFlags(cmd, "data-dir")
	cmd.Flags().StringVar(&user, "user", userName(), "whom the token names")
	cmd.Flags().DurationVar(&good, "for", 30*24*time.Hour, "how long it is good for")
	return cmd
}

// vmdKey reads the key of the tokens, or makes it.
func vmdKey(c *config) ([]byte, error) {
	path := keyFile(c)
	for {
		key, err := os.ReadFile(path)
		if err == nil && len(key) < 32 {
			return nil, fmt.Errorf("%s has %d bytes, and is no key: remove it, and a new one is made", path, len(key))
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return key, err
		}
		if err := makeKey(path); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
}

// makeKey makes a key that is there whole, or not at all.
func makeKey(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "vmd.key-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	key := make([]byte, 32)
	rand.Read(key)
	_, err = f.Write(key)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Link(f.Name(), path)
}

// serveVMs runs the daemon until ctx ends.
func serveVMs(ctx context.Context, c *config, log *slog.Logger) (err error) {
	most, err := c.number("vmd-max-vms", 0, 10_000)
	if err != nil {
		return err
	}
	mc, err := machinesOf(c)
	if err != nil {
		return err
	}
	mc.remote, mc.dir = remoteConfig{}, filepath.Join(c.get("data-dir"), "vmd")
	if err := openDataDir(c, log); err != nil {
		return err
	}
	key, err := vmdKey(c)
	if err != nil {
		return err
	}
	lock, err := lockFile(filepath.Join(c.get("data-dir"), "vmd.lock"))
	if err != nil {
		return fmt.Errorf("another VM daemon uses the data folder %s: %w", c.get("data-dir"), err)
	}
	defer lock.Close()
	l, err := net.Listen("tcp", c.get("vmd-listen"))
	if err != nil {
		return err
	}
	defer l.Close()
	host, err := openMachines(ctx, mc, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	if most == 0 {
		most = max(1, host.most)
		if host.most == 0 { // processes
			most = 4 * runtime.NumCPU()
		}
	}
	s, err := vmapi.New(vmapi.Config{Open: backends(host, log), Key: key, Version: version(), Max: most, MaxMemory: 4 * mc.size.Memory,
		MaxCPUs: max(mc.size.VCPUs, runtime.NumCPU()), Log: log})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	log.Info("listening", "url", "http://"+l.Addr().String(), "machines", most, "version", version())
	return s.Serve(ctx, l)
}

// lockFile makes this process the only one that has the file locked, until it is closed.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// backends are this host's machines for the API.
func backends(host *machines, log *slog.Logger) func(context.Context, []string) (vmapi.Backend, error) {
	return func(ctx context.Context, labels []string) (vmapi.Backend, error) {
		if _, err := host.labels.Kind(labels); err != nil {
			return vmapi.Backend{}, err
		}
		of := host.Machines
		if m, ok := of.(mixed); ok { // the API is not told whom to trust
			of = m.vms
		}
		if fleet, ok := of.(*dispatch.Fleet); ok {
			var err error
			if of, err = fleet.Of(ctx, labels); err != nil {
				return vmapi.Backend{}, err
			}
		}
		local, ok := of.(*dispatch.Local)
		if !ok {
			return vmapi.Backend{}, fmt.Errorf("machines of the kind %T cannot be served", of)
		}
		return vmapi.Backend{Provider: connected{local.Provider, host.egress(tgr.Run{}), log}, Size: local.Size, Shared: local.Shared, Place: func(m vm.VM) vmapi.Place {
			p := local.Place(m)
			if p.Node != nil { // which cannot be asked from afar
				p.Nodes = allNodes(ctx, p.Node, log)
			}
			return vmapi.Place{Home: p.Dirs.Home, Tools: p.Dirs.Tools, Nodes: p.Nodes, Env: p.Env, User: p.User, Engines: p.Engines}
		}}, nil
	}
}
