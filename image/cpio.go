package image

import (
	"fmt"
	"io"
)

const (
	modeDir  = 0o040000
	modeFile = 0o100000
	modeChar = 0o020000
)

// cpio writes the "newc" format that the kernel unpacks an initramfs from
// (Documentation/driver-api/early-userspace/buffer-format.rst). Everything belongs to root and has no time,
// so that the same input gives the same bytes. The first error sticks and is returned by close.
type cpio struct {
	w   io.Writer
	n   int64 // bytes written
	ino uint32
	err error
}

func newCPIO(w io.Writer) *cpio { return &cpio{w: w} }

func (c *cpio) dir(name string, perm uint32) { c.entry(name, modeDir|perm, 0, 0, nil) }

func (c *cpio) file(name string, perm uint32, data []byte) { c.entry(name, modeFile|perm, 0, 0, data) }

func (c *cpio) device(name string, perm, major, minor uint32) {
	c.entry(name, modeChar|perm, major, minor, nil)
}

func (c *cpio) close() error {
	c.ino = 0
	c.entry("TRAILER!!!", 0, 0, 0, nil)
	for c.err == nil && c.n%512 != 0 {
		c.write(make([]byte, 512-c.n%512))
	}
	return c.err
}

func (c *cpio) entry(name string, mode, major, minor uint32, data []byte) {
	c.ino++
	if int64(len(data)) > 1<<32-1 {
		c.err = fmt.Errorf("cpio: %s has %d bytes, too many for the format", name, len(data))
		return
	}
	nlink := 1
	if mode&modeDir != 0 {
		nlink = 2
	}
	c.write(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		c.ino, mode, 0, 0, nlink, 0, len(data), 0, 0, major, minor, len(name)+1, 0))
	c.write([]byte(name + "\x00"))
	c.pad()
	c.write(data)
	c.pad()
}

// pad fills up to the next multiple of four.
func (c *cpio) pad() { c.write(make([]byte, (4-c.n%4)%4)) }

func (c *cpio) write(b []byte) {
	if c.err != nil {
		return
	}
	n, err := c.w.Write(b)
	c.n += int64(n)
	c.err = err
}
