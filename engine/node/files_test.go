package node

import (
	"testing"

	"github.com/infinite-llm/infinite/engine/config"
)

// The most that one of a start's processes needs: the API process, or with many instances one of them for its links.
func TestFilesNeeded(t *testing.T) {
	for _, tc := range []struct {
		join, etcd        string
		instances, others int
		want              int
	}{
		{"", "", 1, 0, 186},
		{"", "", 64, 0, 1032},
		{"", "http://a:2379", 1, 0, 36},
		{"", "http://a:2379", 8, 0, 136},
		{"h:8001", "", 1, 0, 24},
		{"h:8001", "", 1, 7, 136},
	} {
		cfg := config.Default()
		if cfg.Join, cfg.Instances = tc.join, tc.instances; tc.etcd != "" {
			cfg.EtcdEndpoints = []string{tc.etcd}
		}
		if got := FilesNeeded(cfg, tc.others); got != tc.want {
			t.Errorf("%+v: %d", tc, got)
		}
	}
}
