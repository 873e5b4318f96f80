# Everything that docs/results.md reports of the reference set-ups, by the commands it names. `make results` makes what is
# missing, in order, and goes on where it stopped. About six hours on one CPU core; `make -j 2 results` uses two.
# HIPPOCAMPUS and STS are folders of the two cohorts, as `latentsynth prepare` reads them.
HIPPOCAMPUS ?= data/hippocampus
STS ?= data/sts
LS := OMP_NUM_THREADS=1 $(BIN)/latentsynth
R := runs/results
COHORTS := hippocampus sts
GANS := hippocampus-pix2pix hippocampus-spade hippocampus-latent-gan hippocampus-stylegan2
GUIDANCE_hippocampus := 1.5
GUIDANCE_sts := 2
PER_MASK_hippocampus := 2
PER_MASK_sts := 4

.PHONY: results
.SECONDARY:
results: $(COHORTS:%=$(R)/%-obedience/obedience.json) $(COHORTS:%=$(R)/%-fidelity/fidelity.json) \
  $(COHORTS:%=$(R)/%-reconstruction/reconstruction.json) $(R)/hippocampus-families-obedience/obedience.json \
  $(R)/hippocampus-families-fidelity/fidelity.json
	$(LS) report runs --out runs/report.html

runs/manifests/hippocampus.json: ; $(LS) prepare $(HIPPOCAMPUS) --out $@
runs/manifests/sts.json: ; $(LS) prepare $(STS) --out $@

# A configuration runs/NAME-PART is of is configs/reference/NAME_PART.yaml.
config = configs/reference/$(subst -,_,$(1)).yaml
trained = runs/$(1)/checkpoint/header.json

runs/%-unet/checkpoint/ledger.json: runs/manifests/%.json
	$(LS) train segmenter configs/reference/$*_unet.yaml
runs/%-selection-unet/checkpoint/ledger.json: runs/manifests/%.json
	$(LS) train segmenter configs/reference/$*_unet.yaml run=runs/$*-selection-unet seed=1
runs/%-autoencoder/checkpoint/header.json: runs/manifests/%.json
	$(LS) train autoencoder configs/reference/$*_autoencoder.yaml
runs/%-ldm/checkpoint/header.json: runs/%-autoencoder/checkpoint/header.json runs/%-selection-unet/checkpoint/ledger.json
	$(LS) train ldm configs/reference/$*_ldm.yaml
$(foreach gan,$(GANS),$(call trained,$(gan))): runs/%/checkpoint/header.json: runs/hippocampus-autoencoder/checkpoint/header.json
	$(LS) train gan $(call config,$*)

$(R)/%-guided/manifest.json: runs/%-ldm/checkpoint/header.json
	$(LS) sample runs/$*-ldm --masks runs/manifests/$*.json --split test --per-mask $(PER_MASK_$*) --guidance $(GUIDANCE_$*) --out $(@D)
$(R)/%-unguided/manifest.json: runs/%-ldm/checkpoint/header.json
	$(LS) sample runs/$*-ldm --masks runs/manifests/$*.json --split test --per-mask $(PER_MASK_$*) --guidance 1 --out $(@D)
$(GANS:%=$(R)/%-samples/manifest.json): $(R)/%-samples/manifest.json: runs/%/checkpoint/header.json
	$(LS) sample runs/$* --masks runs/manifests/hippocampus.json --split test --per-mask 2 --out $(@D)

$(R)/%-reconstruction/reconstruction.json: runs/%-autoencoder/checkpoint/header.json
	$(LS) evaluate reconstruction runs/$*-autoencoder runs/manifests/$*.json --split test --out $(@D)
$(R)/%-obedience/obedience.json: runs/%-unet/checkpoint/ledger.json $(R)/%-guided/manifest.json $(R)/%-unguided/manifest.json
	$(LS) evaluate obedience --segmenter runs/$*-unet --samples guided=$(R)/$*-guided/manifest.json \
	  --samples unguided=$(R)/$*-unguided/manifest.json --real runs/manifests/$*.json --split test \
	  --autoencoder runs/$*-autoencoder --out $(@D)
$(R)/%-fidelity/fidelity.json: $(R)/%-obedience/obedience.json
	$(LS) evaluate fidelity --real runs/manifests/$*.json --split test --samples guided=$(R)/$*-guided/manifest.json \
	  --samples unguided=$(R)/$*-unguided/manifest.json --samples reconstructed=$(R)/$*-obedience/reconstructed/manifest.json \
	  --like runs/$*-ldm --out $(@D)

families = $(foreach gan,$(GANS),--samples $(gan:hippocampus-%=%)=$(R)/$(gan)-samples/manifest.json) \
  --samples ldm=$(R)/hippocampus-guided/manifest.json
$(R)/hippocampus-families-obedience/obedience.json: $(GANS:%=$(R)/%-samples/manifest.json) $(R)/hippocampus-guided/manifest.json runs/hippocampus-unet/checkpoint/ledger.json
	$(LS) evaluate obedience --segmenter runs/hippocampus-unet $(families) --real runs/manifests/hippocampus.json --split test \
	  --autoencoder runs/hippocampus-autoencoder --out $(@D)
$(R)/hippocampus-families-fidelity/fidelity.json: $(R)/hippocampus-families-obedience/obedience.json
	$(LS) evaluate fidelity --real runs/manifests/hippocampus.json --split test $(families) --like runs/hippocampus-ldm --out $(@D)
