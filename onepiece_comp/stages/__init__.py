"""The pipeline: one file a stage, named as its command, with one public function, paths and settings in, a path out.

In: the folder that the stage before wrote. Out: the folder or file that the next one reads. Each runs alone too:
`python -m onepiece_comp.stages.preprocess TRAIN DATASET`.
"""
