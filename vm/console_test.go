package vm

import (
	"strings"
	"testing"
)

func TestConsole(t *testing.T) {
	var c Console
	c.Write([]byte("\x1b[31mred\x1b[0m\r\nUTF-8: é, broken: \xff\xfe, nul: \x00.\t\n"))
	if got, want := c.String(), "[31mred[0m\nUTF-8: é, broken: , nul: .\t\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for range 3 {
		c.Write([]byte(strings.Repeat("a", maxConsole/2+7)))
	}
	c.Write([]byte("end"))
	if got := c.String(); len(got) != maxConsole || !strings.HasSuffix(got, "aend") {
		t.Errorf("kept %d bytes that end in %q", len(got), got[len(got)-4:])
	}
	c.Write([]byte(strings.Repeat("b", 3*maxConsole)))
	if got := c.String(); got != strings.Repeat("b", maxConsole) {
		t.Errorf("after a flood: %d bytes", len(got))
	}
	if cap(c.buf) > 4*maxConsole {
		t.Errorf("the buffer grew to %d bytes", cap(c.buf))
	}
}
