package rdma

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// fakeSys is a tree as the kernel has it: PCI devices by their way from the host bridge, RDMA devices by their
// PCI device, "" for software.
func fakeSys(t *testing.T, pci map[string]string, rdma map[string]string) string {
	t.Helper()
	sys := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(sys, "bus/pci/devices"), 0o755))
	where := map[string]string{}
	for way, node := range pci {
		dir := filepath.Join(sys, "devices", way)
		must(os.MkdirAll(dir, 0o755))
		must(os.WriteFile(filepath.Join(dir, "numa_node"), []byte(node+"\n"), 0o644))
		where[filepath.Base(way)] = dir
		must(os.Symlink(dir, filepath.Join(sys, "bus/pci/devices", filepath.Base(way))))
	}
	for name, address := range rdma {
		dir := filepath.Join(sys, "class/infiniband", name)
		must(os.MkdirAll(dir, 0o755))
		if address != "" {
			must(os.Symlink(where[address], filepath.Join(dir, "device")))
		}
	}
	return sys
}

func TestNearest(t *testing.T) {
	sys := fakeSys(t, map[string]string{
		"pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:00.0/0000:18:00.0": "0",  // a GPU
		"pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:01.0/0000:19:00.0": "0",  // behind the same switch
		"pci0000:15/0000:15:01.0/0000:16:00.0/0000:17:02.0/0000:1a:00.0": "0",  // likewise
		"pci0000:15/0000:15:02.0/0000:2a:00.0":                           "0",  // another port of the same root
		"pci0000:3c/0000:3c:01.0/0000:3d:00.0":                           "0",  // another root of the node
		"pci0000:97/0000:97:01.0/0000:98:00.0":                           "1",  // the other node
		"pci0000:b7/0000:b7:01.0/0000:b8:00.0":                           "1",  // a GPU there, alone at its root
		"pci0000:f0/0000:f0:00.0":                                        "-1", // a GPU of no node
	}, map[string]string{
		"mlx5_0": "0000:19:00.0", "mlx5_1": "0000:1a:00.0", "mlx5_2": "0000:2a:00.0", "mlx5_3": "0000:3d:00.0", "mlx5_4": "0000:98:00.0", "rxe0": "",
	})
	all := []string{"mlx5_0", "mlx5_1", "mlx5_2", "mlx5_3", "mlx5_4", "rxe0"}
	for _, c := range []struct {
		gpu         string
		names, want []string
	}{
		{"0000:18:00.0", all, []string{"mlx5_0", "mlx5_1"}},
		{"00000000:18:00.0", all, []string{"mlx5_0", "mlx5_1"}},
		{"0000:18:00.0", all[2:], []string{"mlx5_2"}},
		{"0000:18:00.0", all[3:], []string{"mlx5_3"}},
		{"0000:18:00.0", all[4:], nil},
		{"0000:B8:00.0", all, []string{"mlx5_4"}},
		{"0000:f0:00.0", all, nil},
		{"0000:ff:00.0", all, nil},
		{"0000:18:00.0", all[5:], nil},
		{"0000:18:00.0", nil, nil},
	} {
		if got := nearest(sys, c.gpu, c.names); !slices.Equal(got, c.want) {
			t.Errorf("near %s of %v: %v, want %v", c.gpu, c.names, got, c.want)
		}
	}
}

// What is preferred changes which rail is taken, not the rails' numbers.
func TestPreferredRails(t *testing.T) {
	devices := []string{"a", "b", "b", "c"} // b has two ports
	for _, c := range []struct {
		prefer []string
		want   []int
	}{
		{nil, []int{0, 1, 2, 3}}, {[]string{"none"}, []int{0, 1, 2, 3}}, {[]string{"b"}, []int{1, 2}}, {[]string{"c", "a"}, []int{0, 3}},
	} {
		if got := railNumbers(devices, c.prefer); !slices.Equal(got, c.want) {
			t.Errorf("preferring %q: %v, want %v", c.prefer, got, c.want)
		}
	}
	up := []VerbsPort{{Device: "a", Rail: 0}, {Device: "b", Rail: 2}, {Device: "c", Rail: 3}} // rail 1 is down
	for _, c := range []struct {
		prefer []string
		number int
		strict bool
		want   []int // one of these for every pair, and each for some; none: an error
	}{
		{nil, -1, false, []int{0, 2, 3}},
		{[]string{"b"}, -1, false, []int{2}},
		{[]string{"c", "a"}, -1, false, []int{0, 3}},
		{[]string{"none"}, -1, false, []int{0, 2, 3}},
		{[]string{"b"}, 0, false, []int{0}},
		{[]string{"b"}, 0, true, []int{0}},
		{[]string{"b"}, 1, false, []int{2}},
		{[]string{"b"}, 1, true, nil},
	} {
		seen := map[int]bool{}
		for i := range 64 {
			one, other := "i0", fmt.Sprint("j", i)
			p, err := onRail(up, c.prefer, c.number, c.strict, one, other)
			back, _ := onRail(up, c.prefer, c.number, c.strict, other, one)
			if (err != nil) != (c.want == nil) || back != p {
				t.Fatalf("%+v: rail %d there, %d back, %v", c, p.Rail, back.Rail, err)
			}
			if err == nil {
				seen[p.Rail] = true
			}
		}
		if got := slices.Sorted(maps.Keys(seen)); !slices.Equal(got, c.want) {
			t.Errorf("%+v: rails %v", c, got)
		}
	}
}
