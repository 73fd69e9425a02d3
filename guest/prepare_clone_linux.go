package guest

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// idFiles are the files that have to do with who a machine is.
type idFiles struct {
	dir       string // in memory; the ids are written there
	machineID string // machine-id(5), a link to dir
	kernelID  string // over which the boot id is mounted when the machine boots
	arp       string // the neighbour cache, to be read
}

func machineFiles() idFiles {
	return idFiles{"/run/tgr", "/etc/machine-id", "/proc/sys/kernel/random/boot_id", "/proc/net/arp"}
}

func (f idFiles) ourMachineID() string { return filepath.Join(f.dir, "machine-id") }
func (f idFiles) ourBootID() string    { return filepath.Join(f.dir, "boot_id") }

// clone makes this machine one of many that have the same memory. What it writes and reads stays open from the first Prepare
// on, which a machine gets before its snapshot is taken: clones have nothing to open. Its zero value, with files, is ready
// for use, not concurrently.
type clone struct {
	files  idFiles
	opened bool

	random, machineID, bootID, arp uintptr // descriptors
}

// open opens what is not open yet.
func (c *clone) open() error {
	if c.opened {
		return nil
	}
	for _, f := range []struct {
		fd    *uintptr
		path  string
		flags int
	}{
		{&c.random, "/dev/random", unix.O_WRONLY},
		{&c.machineID, c.files.ourMachineID(), unix.O_WRONLY},
		{&c.bootID, c.files.ourBootID(), unix.O_WRONLY},
		{&c.arp, c.files.arp, unix.O_RDONLY},
	} {
		fd, err := unix.Open(f.path, f.flags|unix.O_CLOEXEC, 0)
		if err != nil {
			c.close()
			return fmt.Errorf("%s: %w", f.path, err)
		}
		*f.fd = uintptr(fd)
	}
	c.opened = true
	return nil
}

// close closes what is open.
func (c *clone) close() {
	for _, fd := range []*uintptr{&c.random, &c.machineID, &c.bootID, &c.arp} {
		if *fd != 0 {
			unix.Close(int(*fd))
			*fd = 0
		}
	}
	c.opened = false
}

// prepare renews what the clones of a snapshot have in common: besides name and clock the state of the kernel's generator, machine-id
// and boot id, which are derived from the host's entropy, and what the network's neighbours were.
func (c *clone) prepare(id *Identity) error {
	if err := prepare(id); err != nil {
		return err
	}
	if len(id.Entropy) == 0 {
		return nil
	}
	if err := c.open(); err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	if err := c.addEntropy(id.Entropy); err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	if err := c.identify(id.Entropy); err != nil {
		return fmt.Errorf("prepare: ids: %w", err)
	}
	if err := c.forgetNeighbours(); err != nil {
		return fmt.Errorf("prepare: neighbours: %w", err)
	}
	return nil
}

// derive makes 128 bits for one purpose of entropy that also goes to the kernel, from which they do not tell.
func derive(entropy []byte, purpose string) [16]byte {
	b := append([]byte("tgr "), purpose...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(entropy)))
	sum := sha256.Sum256(append(b, entropy...))
	return [16]byte(sum[:])
}

// identify writes both ids over what is in their files: that of the boot is mounted where the kernel has its own.
func (c *clone) identify(entropy []byte) error {
	m, b := derive(entropy, "machine-id"), derive(entropy, "boot-id")
	for _, id := range []*[16]byte{&m, &b} { // as random UUIDs are, RFC 9562
		id[6] = id[6]&0x0f | 0x40
		id[8] = id[8]&0x3f | 0x80
	}
	if err := overwrite(c.machineID, append(hex.AppendEncode(nil, m[:]), '\n')); err != nil {
		return err
	}
	var uuid []byte
	for _, part := range [][]byte{b[:4], b[4:6], b[6:8], b[8:10], b[10:]} {
		uuid = append(hex.AppendEncode(uuid, part), '-')
	}
	uuid[len(uuid)-1] = '\n'
	return overwrite(c.bootID, uuid)
}

// overwrite writes over the beginning of a file in memory, which takes all of it or nothing.
func overwrite(fd uintptr, b []byte) error {
	n, err := raw(unix.SYS_PWRITE64, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0)
	if err == nil && n != uintptr(len(b)) {
		err = io.ErrShortWrite
	}
	return err
}

// raw makes a system call that cannot wait. Nothing in Prepare can, and an emulated clone would have to translate all that
// Go does about calls that may, its poller, finalizers and another thread, before its first job: half of Prepare.
//
//go:uintptrescapes
func raw(trap, a, b, c, d uintptr) (uintptr, error) {
	r, _, errno := unix.RawSyscall6(trap, a, b, c, d, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return r, nil
}

// settle makes both ids files in memory, when the machine boots: writing to a disk for the first time would take each
// clone of an emulated machine tens of milliseconds.
func (f idFiles) settle() error {
	boot, err := os.ReadFile(f.kernelID)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(f.dir, 0o755); err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(f.ourMachineID(), nil, 0o644), os.WriteFile(f.ourBootID(), boot, 0o644)); err != nil {
		return err
	}
	if err := os.Remove(f.machineID); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(f.ourMachineID(), f.machineID); err != nil {
		return err
	}
	return unix.Mount(f.ourBootID(), f.kernelID, "", unix.MS_BIND, "") // the kernel shows its own, which is that of all clones
}

// arpRequest is struct arpreq of arp(7).
type arpRequest struct {
	protocol unix.RawSockaddrInet4
	hardware unix.RawSockaddr
	flags    int32
	mask     unix.RawSockaddr
	device   [16]byte
}

// forgetNeighbours drops what the machine knew of its network when the snapshot was taken: the clone's may be
// another one.
func (c *clone) forgetNeighbours() error {
	var table []byte
	for b := make([]byte, 4<<10); ; {
		n, err := raw(unix.SYS_PREAD64, c.arp, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), uintptr(len(table)))
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		table = append(table, b[:n]...)
	}
	known := parseARP(table)
	if len(known) == 0 {
		return nil
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for _, n := range known {
		req := arpRequest{protocol: unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: n.addr.As4()}}
		copy(req.device[:len(req.device)-1], n.device)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCDARP, uintptr(unsafe.Pointer(&req)))
		if errno != 0 && !errors.Is(errno, unix.ENXIO) && !errors.Is(errno, unix.ENOENT) { // gone by itself
			return fmt.Errorf("%s: %w", n.addr, errno)
		}
	}
	return nil
}

type neighbour struct {
	addr   netip.Addr
	device string
}

// parseARP reads proc(5)'s net/arp: a heading, then a line of columns for each neighbour.
func parseARP(b []byte) []neighbour {
	var known []neighbour
	lines := bufio.NewScanner(bytes.NewReader(b))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) != 6 {
			continue
		}
		if addr, err := netip.ParseAddr(f[0]); err == nil && addr.Is4() {
			known = append(known, neighbour{addr, f[5]})
		}
	}
	return known
}
