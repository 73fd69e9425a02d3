package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/terraphim/tgr/vm"
)

// region is where a part of a file is mapped into a process.
type region struct {
	addr, size int64
	offset     int64 // in the file
}

// Bits of /proc/pid/pagemap (Documentation/admin-guide/mm/pagemap.rst).
const (
	pagePresent = 1 << 63
	pageSwapped = 1 << 62
	pageOfFile  = 1 << 61 // or shared: of a private mapping, not written to
)

// memoryName begins what /proc/pid/maps calls a memory file of ours.
const memoryName = "/memfd:" + memfdName

// regions finds where a process has mapped a memory file of ours privately.
func regions(pid int) ([]region, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	found := parseMaps(b)
	if len(found) == 0 {
		return nil, fmt.Errorf("process %d has no private mapping of its snapshot", pid)
	}
	return found, nil
}

func parseMaps(maps []byte) []region {
	var found []region
	lines := bufio.NewScanner(bytes.NewReader(maps))
	for lines.Scan() {
		var from, to, offset int64
		var mode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s %x", &from, &to, &mode, &offset); err != nil {
			continue
		}
		if strings.Contains(lines.Text(), memoryName) && strings.HasSuffix(mode, "p") {
			found = append(found, region{from, to - from, offset})
		}
	}
	return found
}

// saveMemory copies the pages that are the machine's own to a new sparse file, each to its place. The machine stands
// still.
func (m *machine) saveMemory(ctx context.Context, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(m.args.mib() << 20); err != nil {
		return err
	}
	if m.args.Backing == shared {
		return vm.CopyData(ctx, f, m.memory)
	}
	return m.emulator().copyOwnPages(ctx, f)
}

// copyOwnPages copies the pages that the process has written since it mapped the snapshot.
func (e *emulator) copyOwnPages(ctx context.Context, to *os.File) error {
	pid := e.process.Pid
	all, err := regions(pid)
	if err != nil {
		return err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return err
	}
	defer mem.Close()
	pagemap, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return err
	}
	defer pagemap.Close()
	buf := make([]byte, packChunk)
	for _, r := range all {
		err := ownPages(pagemap, r, func(at, n int64) error {
			for ; n > 0 && ctx.Err() == nil; at, n = at+int64(len(buf)), n-int64(len(buf)) {
				b := buf[:min(n, int64(len(buf)))]
				if _, err := mem.ReadAt(b, r.addr+at); err != nil {
					return err
				}
				if _, err := to.WriteAt(b, r.offset+at); err != nil {
					return err
				}
			}
			return context.Cause(ctx)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// ownPages calls fn for the runs of pages of a private mapping that have been written to: where they begin in it, and
// how many bytes they have.
func ownPages(pagemap io.ReaderAt, r region, fn func(at, n int64) error) error {
	entries := make([]byte, 8*4096)
	begin := int64(-1)
	for at := int64(0); at < r.size; {
		n := min(int64(len(entries))/8, (r.size-at)/pageSize)
		if _, err := pagemap.ReadAt(entries[:8*n], (r.addr+at)/pageSize*8); err != nil {
			return err
		}
		for i := range n {
			bits := binary.NativeEndian.Uint64(entries[8*i:])
			own := bits&pageSwapped != 0 || bits&pagePresent != 0 && bits&pageOfFile == 0
			switch here := at + i*pageSize; {
			case own && begin < 0:
				begin = here
			case !own && begin >= 0:
				if err := fn(begin, here-begin); err != nil {
					return err
				}
				begin = -1
			}
		}
		at += n * pageSize
	}
	if begin >= 0 {
		return fn(begin, r.size-begin)
	}
	return nil
}

// loadMemory writes the pages that a snapshot kept over the process's mapping. The machine stands still.
func (e *emulator) loadMemory(ctx context.Context, path string) error {
	pid := e.process.Pid
	all, err := regions(pid)
	if err != nil {
		return err
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer mem.Close()
	kept, err := os.Open(path)
	if err != nil {
		return err
	}
	defer kept.Close()
	return vm.EachData(ctx, kept, func(b []byte, at int64) error {
		for len(b) > 0 {
			addr, n := place(all, at)
			if n == 0 {
				return fmt.Errorf("byte %d of the memory is not mapped", at)
			}
			n = min(n, int64(len(b)))
			if _, err := mem.WriteAt(b[:n], addr); err != nil {
				return err
			}
			b, at = b[n:], at+n
		}
		return nil
	})
}

// place is the address of a byte of the file, and how many from there on are mapped behind each other.
func place(all []region, at int64) (addr, n int64) {
	for _, r := range all {
		if at >= r.offset && at < r.offset+r.size {
			return r.addr + at - r.offset, r.size - (at - r.offset)
		}
	}
	return 0, 0
}
