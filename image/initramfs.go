package image

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// bootModules are what the agent needs between the kernel's start and the opened port: Debian's cloud kernel has
// every virtio driver and overlayfs as a module, and ext4 built in. The last two are of Firecracker's devices, and are
// loaded only there.
func bootModules() []string {
	return []string{"virtio_mmio", "virtio_pci", "virtio_blk", "virtio_console", "virtio_rng", "virtio_net", "overlay",
		"vmw_vsock_virtio_transport", "virtio_balloon"}
}

// engineModules are what a container engine asks the kernel for: bridges and pairs of interfaces, the filters of
// netavark's iptables rules, which are nftables below, FUSE and TUN. They are loaded at boot, once for all machines that
// are restored from the snapshot: the root filesystem, which is built apart from the kernel, cannot hold them.
func engineModules() []string {
	return []string{
		"bridge", "br_netfilter", "veth", "dummy", "tun", "fuse", "loop",
		"nf_tables", "nft_compat", "nft_chain_nat", "nft_ct", "nft_masq", "nft_nat", "nft_redir", "nft_reject_inet", "nft_fib_inet",
		"xt_addrtype", "xt_comment", "xt_conntrack", "xt_mark", "xt_multiport", "xt_nat", "xt_tcpudp", "xt_MASQUERADE", "xt_REDIRECT",
		"nf_conntrack_netlink",
	}
}

// ModulesDir is where the initramfs keeps its modules; its file "order" names them in the order to load.
const ModulesDir = "lib/modules"

const maxModule = 32 << 20

// module is a kernel module as a file.
type module struct {
	name string // virtio_blk.ko
	data []byte
}

// readModules returns the wanted modules and what they depend on, dependencies first. A wanted module that is
// built into the kernel is left out.
func readModules(dir string, want []string) ([]module, error) {
	deps, err := readDeps(dir)
	if err != nil {
		return nil, err
	}
	builtin, err := readBuiltin(dir)
	if err != nil {
		return nil, err
	}
	var out []module
	seen := map[string]bool{}
	var add func(file string) error
	add = func(file string) error {
		if seen[file] {
			return nil
		}
		seen[file] = true
		// modules.dep lists a module's whole closure, the nearest first: the last one has to be loaded first.
		for _, d := range slices.Backward(deps[file]) {
			if err := add(d); err != nil {
				return err
			}
		}
		data, err := readModule(filepath.Join(dir, filepath.FromSlash(file)))
		if err != nil {
			return err
		}
		out = append(out, module{path.Base(file), data})
		return nil
	}
	for _, name := range want {
		file, ok := findModule(deps, name)
		if !ok && builtin[name] {
			continue
		}
		if !ok {
			return nil, fmt.Errorf("%s: the kernel has no module %s", dir, name)
		}
		if err := add(file); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func readModule(path string) ([]byte, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if fi.Size() > maxModule {
		return nil, fmt.Errorf("%s: %d bytes are too many for a module", path, fi.Size())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(data, []byte("\x7fELF")) {
		return nil, fmt.Errorf("%s is compressed or damaged: only uncompressed modules are supported", path)
	}
	return data, nil
}

func findModule(deps map[string][]string, name string) (string, bool) {
	for file := range deps {
		if moduleName(file) == name {
			return file, true
		}
	}
	return "", false
}

// moduleName turns kernel/drivers/block/virtio_blk.ko into virtio_blk; the kernel treats '-' and '_' as the same.
func moduleName(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(path.Base(file), ".ko"), "-", "_")
}

// readDeps parses modules.dep: "file: dependency dependency", paths relative to its folder.
func readDeps(dir string) (map[string][]string, error) {
	b, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, err
	}
	return parseDeps(string(b))
}

func parseDeps(s string) (map[string][]string, error) {
	deps := map[string][]string{}
	for line := range strings.Lines(s) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		file, rest, ok := strings.Cut(line, ":")
		if !ok {
			return nil, fmt.Errorf("modules.dep: no colon in %.80q", line)
		}
		all := append([]string{file}, strings.Fields(rest)...)
		for _, f := range all {
			if !filepath.IsLocal(f) {
				return nil, fmt.Errorf("modules.dep: %.80q leaves its folder", f)
			}
		}
		deps[file] = all[1:]
	}
	return deps, nil
}

func readBuiltin(dir string) (map[string]bool, error) {
	b, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		out[moduleName(strings.TrimSpace(line))] = true
	}
	return out, nil
}

// writeInitramfs writes the archive that the kernel unpacks into its first root: the agent as /init, the modules
// and their order. It is not compressed: under software emulation unpacking costs more than reading.
func writeInitramfs(w io.Writer, agent []byte, modules []module) error {
	c := newCPIO(w)
	for _, d := range []string{"dev", "proc", "sys", "lib", ModulesDir, "lower", "upper", "root"} {
		c.dir(d, 0o755)
	}
	c.device("dev/console", 0o600, 5, 1)
	c.file("init", 0o755, agent)
	var order strings.Builder
	for _, m := range modules {
		c.file(ModulesDir+"/"+m.name, 0o644, m.data)
		fmt.Fprintln(&order, m.name)
	}
	c.file(ModulesDir+"/order", 0o644, []byte(order.String()))
	return c.close()
}

// initramfsKey names an initramfs by what goes into it.
func initramfsKey(agent []byte, modules []module) string {
	h := sha256.New()
	fmt.Fprintf(h, "1 %d\n", len(agent)) // 1: the layout that writeInitramfs makes
	h.Write(agent)
	for _, m := range modules {
		fmt.Fprintf(h, "%s %d\n", m.name, len(m.data))
		h.Write(m.data)
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

func hashBytes(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// checkStatic refuses a program that needs a dynamic linker: the initramfs has none.
func checkStatic(b []byte) error {
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return fmt.Errorf("not an ELF program: %w", err)
	}
	if f.Machine != elf.EM_X86_64 {
		return fmt.Errorf("built for %v, want x86-64", f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return errors.New("is linked dynamically: build it with CGO_ENABLED=0")
		}
	}
	return nil
}
